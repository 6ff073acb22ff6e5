"""Computes a benchmark's accuracies, each with its standard error, from graded responses.

One greedy response per problem gives `greedy`; k sampled responses give `avg_at_k` (mean accuracy),
`pass_at_k` (share of problems with a correct response) and `majority_at_k` (share with a correct
majority vote). All are in [0, 1].
"""

import collections
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from srl_jax.evals.passes import GREEDY
from srl_jax.rewards.answers import equal_pairs

FINISHED = ("whole", "boxed")  # values of Episode.ended for episodes that were not truncated


def figures(passes: dict[str, list[dict]]) -> dict:
  """Returns the accuracies of a benchmark.

  Args:
    passes: {pass: lines of its problems}, see evals.passes.

  Returns:
    {name: {value, se}} for greedy, avg_at_k, pass_at_k and majority_at_k; and "passes" with, for
    each pass, problems, unfinished (share of responses), tokens (mean per response) and ended
    (counts).
  """
  found, shapes = {}, {}
  for name, lines in passes.items():
    found |= _greedy(lines) if name == GREEDY else _sampled(lines)
    shapes[name] = _shape(lines)
  return found | {"passes": shapes}


def _shape(lines: Sequence[dict]) -> dict:
  """Returns the description of a pass: problems, unfinished, tokens and ended, see `figures`."""
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
  """Returns {value, se} of one value per problem.

  The standard error is std / sqrt(n), with ddof 1, over the problems: samples of one problem are
  not independent, so only the problems count as draws. It is None for a single problem.
  """
  values_n = np.asarray(values_n, float)
  n = len(values_n)
  se = float(values_n.std(ddof=1) / math.sqrt(n)) if n > 1 else None
  return {"value": float(values_n.mean()), "se": se}


def majority_right(
  samples: Sequence[dict],
  equal: Callable[[Sequence[tuple[str, str]]], list[bool]] = equal_pairs,
) -> bool:
  """Returns whether the majority vote over a problem's samples is correct.

  Samples without an answer do not vote. Of answers with equally many votes the first one wins; the
  order of the samples is random, so this favours neither.

  Args:
    samples: dicts with "answer" and "right".
    equal: returns which pairs of wrong answers are equal; correct answers are all equal.
  """
  votes = [sample for sample in samples if sample["answer"] is not None]
  right = sum(vote["right"] for vote in votes)
  if right == 0 or 2 * right > len(votes):
    # The wrong answers cannot change the result, and comparing them can take seconds.
    return right > 0
  wrong = list(dict.fromkeys(vote["answer"] for vote in votes if not vote["right"]))
  # Different spellings of one wrong answer share their votes.
  first_alike = _first_alike(wrong, equal)
  tally = collections.Counter()  # the key None counts the correct answers
  for vote in votes:
    tally[None if vote["right"] else first_alike[vote["answer"]]] += 1
  # `max` returns the first of equals, and a Counter keeps the order in which votes were counted.
  return max(tally, key=tally.get) is None


def _first_alike(answers: Sequence[str], equal: Callable) -> dict[str, str]:
  """Returns {answer: the first answer that is equal to it}."""
  pairs = [(later, earlier) for earlier, later in itertools.combinations(answers, 2)]
  same = dict(zip(pairs, equal(pairs)))
  first: dict[str, str] = {}
  for answer in answers:
    found = answer
    for earlier in dict.fromkeys(first.values()):  # one representative per class of equal answers
      if same[answer, earlier]:
        found = earlier
        break
    first[answer] = found
  return first


def is_in_average(name: str) -> bool:
  """Returns whether a figure is part of the paper's average: greedy and avg@k are."""
  return name.startswith(("greedy", "avg_at_"))


def paper_average(benchmarks: dict[str, dict]) -> float:
  """Returns the mean of all greedy and avg@k figures, the last column of Tables 1 to 3."""
  values = []
  for found in benchmarks.values():
    values += [found[name]["value"] for name in filter(is_in_average, found)]
  return float(np.mean(values))


def _greedy(lines: Sequence[dict]) -> dict:
  """Returns the figure of a greedy pass."""
  return {"greedy": mean_and_error([line["samples"][0]["right"] for line in lines])}


def _sampled(lines: Sequence[dict]) -> dict:
  """Returns the figures of a sampled pass."""
  right_nk, majority_n = [], []  # n problems, k samples
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
