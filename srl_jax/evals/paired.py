"""Two arms of an experiment on the same problems with the same seeds: means, spread, differences.

An arm's results are scores_sp, s seeds by p problems: of a seed's model the score on each problem,
0 or 1 for one greedy answer, the share of right ones for several.
"""

from typing import NamedTuple

import numpy as np

from srl_jax.errors import UserError


class Summary(NamedTuple):
  """An arm. Fields: mean, over seeds and problems; spread, the standard deviation of the seeds'
  means (ddof 1; None for one seed); by_seed, those means.
  """

  mean: float
  spread: float | None
  by_seed: list[float]


class Difference(NamedTuple):
  """One arm minus the other. Fields: mean; low and high, the ends of a 95 % interval;
  by_seed, the mean of each seed.
  """

  mean: float
  low: float
  high: float
  by_seed: list[float]


def summary(scores_sp: np.ndarray) -> Summary:
  """An arm's mean and its spread over seeds."""
  by_seed = np.asarray(scores_sp, float).mean(axis=1)
  spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
  return Summary(float(by_seed.mean()), spread, by_seed.tolist())


def difference(a_sp: np.ndarray, b_sp: np.ndarray, *, draws: int = 10_000) -> Difference:
  """Mean of a - b over the same seeds and problems, with a bootstrap interval.

  Each draw takes seeds and problems again, with replacement and independently of one another, the
  same for both arms (the pigeonhole bootstrap of Owen, 2007, arXiv 0712.1111, which errs on the
  wide side). With one seed the interval speaks of other problems only; with few, little can be
  said of other seeds, so by_seed belongs beside it. The draws are the same at every call.

  Raises UserError for arms of other shapes.
  """
  a_sp, b_sp = np.asarray(a_sp, float), np.asarray(b_sp, float)
  if a_sp.shape != b_sp.shape or a_sp.ndim != 2:
    raise UserError(f"paired arms need the same seeds and problems: {a_sp.shape}, {b_sp.shape}")
  difference_sp = a_sp - b_sp
  s, p = difference_sp.shape
  rng = np.random.default_rng(0)
  seeds_ns = rng.multinomial(s, np.full(s, 1 / s), draws)  # how often each is drawn
  problems_np = rng.multinomial(p, np.full(p, 1 / p), draws)
  # The mean of each draw: a score counts as often as its seed was drawn times its problem.
  means_n = np.einsum("ns,sp,np->n", seeds_ns, difference_sp, problems_np, optimize=True) / (s * p)
  low, high = np.quantile(means_n, [0.025, 0.975])
  by_seed = difference_sp.mean(axis=1).tolist()
  return Difference(float(difference_sp.mean()), float(low), float(high), by_seed)
