"""Statistics of experiments with paired seeds and problems: means, spread, differences.

An arm's results are scores_sp, an array of s seeds by p problems: the score of a seed's model on
each problem, 0 or 1 for one greedy answer, the share of correct ones for several.
"""

from typing import NamedTuple

import numpy as np

from srl_jax.errors import UserError


class Summary(NamedTuple):
  """The results of an arm.

  Attributes:
    mean: over seeds and problems.
    spread: standard deviation of the seeds' means, with ddof 1; None for one seed.
    by_seed: the seeds' means.
  """

  mean: float
  spread: float | None
  by_seed: list[float]


class Difference(NamedTuple):
  """One arm minus another.

  Attributes:
    mean: over seeds and problems.
    low, high: bounds of a 95 % interval.
    by_seed: the mean difference of each seed.
  """

  mean: float
  low: float
  high: float
  by_seed: list[float]


def summary(scores_sp: np.ndarray) -> Summary:
  """Returns an arm's mean and its spread over seeds."""
  by_seed = np.asarray(scores_sp, float).mean(axis=1)
  spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
  return Summary(float(by_seed.mean()), spread, by_seed.tolist())


def difference(a_sp: np.ndarray, b_sp: np.ndarray, *, draws: int = 10_000) -> Difference:
  """Returns the mean of a - b over the same seeds and problems, with a bootstrap interval.

  Each draw resamples seeds and problems with replacement, independently of one another and alike
  for both arms (the pigeonhole bootstrap of Owen, 2007, arXiv 0712.1111, which is conservative).
  With one seed the interval only covers the choice of problems. With few seeds it is unreliable
  about other seeds, so report by_seed too. The random draws are the same in every call.

  Args:
    a_sp, b_sp: scores of two arms, float [s, p].
    draws: number of bootstrap samples.

  Raises:
    UserError: the shapes differ, or are not two-dimensional.
  """
  a_sp, b_sp = np.asarray(a_sp, float), np.asarray(b_sp, float)
  if a_sp.shape != b_sp.shape or a_sp.ndim != 2:
    raise UserError(f"paired arms need the same seeds and problems: {a_sp.shape}, {b_sp.shape}")
  # Pairing: what both arms share (hard problems, lucky seeds) cancels and adds no variance.
  difference_sp = a_sp - b_sp
  s, p = difference_sp.shape
  # A fixed seed, so that the interval is the same in every call.
  rng = np.random.default_rng(0)
  seeds_ns = rng.multinomial(s, np.full(s, 1 / s), draws)  # how often draw n has each seed
  problems_np = rng.multinomial(p, np.full(p, 1 / p), draws)
  # A draw's mean weights score (s, p) by how often it has seed s times how often it has problem p.
  means_n = np.einsum("ns,sp,np->n", seeds_ns, difference_sp, problems_np, optimize=True) / (s * p)
  low, high = np.quantile(means_n, [0.025, 0.975])
  by_seed = difference_sp.mean(axis=1).tolist()
  return Difference(float(difference_sp.mean()), float(low), float(high), by_seed)
