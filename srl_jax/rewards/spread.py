"""The spread of a group's rewards, by which dynamic sampling keeps or drops the group."""

import math
from collections.abc import Sequence


def population_std(rewards: Sequence[float]) -> float:
  """Population standard deviation; exactly 0 for equal rewards, however their mean is rounded."""
  # A rounding error of 1e-17 would pass a filter with std_epsilon = 0.
  if min(rewards) == max(rewards):
    return 0.0
  mean = math.fsum(rewards) / len(rewards)
  return math.dist(rewards, [mean] * len(rewards)) / math.sqrt(len(rewards))
