"""From graded responses to a benchmark's figures, each with its standard error.

One greedy response a problem gives `greedy`; k sampled ones give `avg_at_k` (the mean of their
accuracies), `pass_at_k` (one of them is right) and `majority_at_k` (the answer that most of them
give is right). All are in [0, 1].
"""

import collections
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from srl_jax.evals.passes import GREEDY
from srl_jax.rewards.answers import equal_pairs

FINISHED = ("whole", "boxed")  # ends of episodes that were not cut off


def figures(passes: dict[str, list[dict]]) -> dict:
  """The figures of a benchmark.

  Args:
    passes: {pass: lines of its problems}, see evals.passes.

  Returns:
    {name: {value, se}} for greedy, avg_at_k, pass_at_k and majority_at_k; and of each pass
    problems, unfinished (share of responses), tokens (mean of a response) and ended (counts).
  """
  found, shapes = {}, {}
  for name, lines in passes.items():
    found |= _greedy(lines) if name == GREEDY else _sampled(lines)
    shapes[name] = _shape(lines)
  return found | {"passes": shapes}


def _shape(lines: Sequence[dict]) -> dict:
  """Of a pass: problems, unfinished, tokens and ended, see `figures`."""
  ended, tokens = collections.Counter(), []
  for line in lines:
    for sample in line["samples"]:
      ended[sample["ended"]] += 1
      tokens.append(sample["tokens"])
  finished = sum(ended[end] for end in FINISHED)
  return {
    "problems": len(lines),
    "unfinished": 1 - finished / len(tokens),
    "tokens": float(np.mean(tokens)),
    "ended": dict(ended),
  }


def mean_and_error(values_n) -> dict[str, float | None]:
  """{value, se} of one value for each problem.

  The standard error is std / sqrt(n) with ddof 1 over the problems: it measures the draw of the
  problems, because the samples of one problem are not independent. It is None for one problem.
  """
  values_n = np.asarray(values_n, float)
  n = len(values_n)
  se = float(values_n.std(ddof=1) / math.sqrt(n)) if n > 1 else None
  return {"value": float(values_n.mean()), "se": se}


def majority_right(
  samples: Sequence[dict],
  equal: Callable[[Sequence[tuple[str, str]]], list[bool]] = equal_pairs,
) -> bool:
  """Whether the answer that most samples give is right.

  Samples without an answer have no vote. Of answers with equally many votes the one that was given
  first counts; the samples' order is chance, so that favours neither side.

  Args:
    samples: with answer and right.
    equal: returns which pairs of wrong answers mean the same; the right ones all do.
  """
  votes = [sample for sample in samples if sample["answer"] is not None]
  right = sum(vote["right"] for vote in votes)
  if right == 0 or 2 * right > len(votes):
    return right > 0  # the wrong answers decide nothing here, and comparing them can cost seconds
  wrong = list(dict.fromkeys(vote["answer"] for vote in votes if not vote["right"]))
  first_alike = _first_alike(wrong, equal)
  tally = collections.Counter()  # None counts the right answers, which all mean the same
  for vote in votes:
    tally[None if vote["right"] else first_alike[vote["answer"]]] += 1
  # `max` gives the first of equals, and a Counter keeps the order of the votes.
  return max(tally, key=tally.get) is None


def _first_alike(answers: Sequence[str], equal: Callable) -> dict[str, str]:
  """{answer: the first of the answers that means the same}."""
  pairs = [(later, earlier) for earlier, later in itertools.combinations(answers, 2)]
  same = dict(zip(pairs, equal(pairs)))
  first: dict[str, str] = {}
  for answer in answers:
    found = answer
    for earlier in dict.fromkeys(first.values()):  # only answers that are the first of their kind
      if same[answer, earlier]:
        found = earlier
        break
    first[answer] = found
  return first


def is_in_average(name: str) -> bool:
  """Whether a figure is one of those that the paper averages, greedy and avg@k."""
  return name.startswith(("greedy", "avg_at_"))


def paper_average(benchmarks: dict[str, dict]) -> float:
  """Mean of all greedy and avg@k figures, as in the last column of the paper's Tables 1 to 3."""
  values = []
  for found in benchmarks.values():
    values += [found[name]["value"] for name in filter(is_in_average, found)]
  return float(np.mean(values))


def _greedy(lines: Sequence[dict]) -> dict:
  return {"greedy": mean_and_error([line["samples"][0]["right"] for line in lines])}


def _sampled(lines: Sequence[dict]) -> dict:
  right_nk, majority_n = [], []
  for line in lines:
    right_nk.append([sample["right"] for sample in line["samples"]])
    majority_n.append(majority_right(line["samples"]))
  right_nk = np.array(right_nk)
  k = right_nk.shape[1]
  return {
    f"avg_at_{k}": mean_and_error(right_nk.mean(axis=1)),
    f"pass_at_{k}": mean_and_error(right_nk.any(axis=1)),
    f"majority_at_{k}": mean_and_error(majority_n),
  }
