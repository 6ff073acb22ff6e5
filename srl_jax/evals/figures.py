"""From graded responses to a benchmark's figures, each with its standard error.

One greedy response a problem gives `greedy`; k sampled ones give `avg_at_k` (the mean of their
accuracies), `pass_at_k` (one of them is right) and `majority_at_k` (the answer that most of them
give is right). All are in [0, 1].
"""

import collections
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
    samples = [sample for line in lines for sample in line["samples"]]
    ended = collections.Counter(sample["ended"] for sample in samples)
    shapes[name] = {
      "problems": len(lines),
      "unfinished": 1 - sum(ended[end] for end in FINISHED) / len(samples),
      "tokens": float(np.mean([sample["tokens"] for sample in samples])),
      "ended": dict(ended),
    }
  return found | {"passes": shapes}


def mean_and_error(values_n) -> dict[str, float | None]:
  """{value, se} of one value for each problem.

  The standard error is std / sqrt(n) with ddof 1 over the problems, so it speaks of other problems
  of the kind; the samples of a problem are no independent draws. It is None for one problem.
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
  votes = [(s["answer"], s["right"]) for s in samples if s["answer"] is not None]
  right = sum(is_right for _, is_right in votes)
  if right == 0 or 2 * right > len(votes):
    return right > 0  # however the wrong ones are counted: comparing them can cost seconds
  wrong = list(dict.fromkeys(answer for answer, is_right in votes if not is_right))
  pairs = [(b, a) for i, a in enumerate(wrong) for b in wrong[i + 1 :]]
  same = dict(zip(pairs, equal(pairs)))
  first: dict[str | None, str | None] = {}  # a wrong answer -> the first one that means the same
  for answer in wrong:
    alike = (one for one in first if first[one] == one and same[answer, one])
    first[answer] = next(alike, answer)
  tally = collections.Counter(None if is_right else first[answer] for answer, is_right in votes)
  return max(tally, key=tally.get) is None  # the first of equals: a Counter keeps the votes' order


def paper_average(benchmarks: dict[str, dict]) -> float:
  """Mean of all greedy and avg@k figures, as in the last column of the paper's Tables 1 to 3."""
  values = []
  for found in benchmarks.values():
    values += [found[name]["value"] for name in found if name.startswith(("greedy", "avg_at_"))]
  return float(np.mean(values))


def _greedy(lines: Sequence[dict]) -> dict:
  return {"greedy": mean_and_error([line["samples"][0]["right"] for line in lines])}


def _sampled(lines: Sequence[dict]) -> dict:
  right_nk = np.array([[sample["right"] for sample in line["samples"]] for line in lines])
  k = right_nk.shape[1]
  return {
    f"avg_at_{k}": mean_and_error(right_nk.mean(axis=1)),
    f"pass_at_{k}": mean_and_error(right_nk.any(axis=1)),
    f"majority_at_{k}": mean_and_error([majority_right(line["samples"]) for line in lines]),
  }
