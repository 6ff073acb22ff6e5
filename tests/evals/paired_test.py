"""Means, spreads and paired intervals: known cases, and how often the interval is right."""

import numpy as np
import pytest

from srl_jax.evals import paired


def test_summary_is_over_seeds():
  found = paired.summary([[1, 1, 0, 0], [1, 1, 1, 0]])
  assert found.mean == 0.625 and found.by_seed == [0.5, 0.75]
  assert found.spread == pytest.approx(0.25 / np.sqrt(2))
  assert paired.summary([[1, 0]]).spread is None


def test_difference_of_an_arm_and_itself_is_zero():
  scores = np.random.default_rng(1).random((3, 50))
  assert paired.difference(scores, scores)[:3] == (0.0, 0.0, 0.0)


def test_difference_of_a_constant_gain_has_a_narrow_interval():
  """Pairing takes out what both arms share: unpaired, these means would tell nothing apart."""
  rng = np.random.default_rng(2)
  hard = rng.random((5, 200))
  found = paired.difference(hard + 0.1, hard)
  assert found.mean == pytest.approx(0.1) and found.high - found.low < 1e-9
  noisy = paired.difference(hard + 0.1 + rng.normal(0, 0.1, hard.shape), hard)
  assert 0.07 < noisy.low < noisy.mean < noisy.high < 0.13
  assert len(noisy.by_seed) == 5 and np.mean(noisy.by_seed) == pytest.approx(noisy.mean)


def test_difference_of_one_seed_is_the_bootstrap_of_a_mean():
  """Its width is that of the normal interval of a mean over problems."""
  difference = np.random.default_rng(3).normal(0.2, 1.0, (1, 400))
  found = paired.difference(difference, np.zeros_like(difference))
  half = 1.96 * difference.std() / np.sqrt(400)
  assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)
  assert found.mean == pytest.approx(difference.mean())


def test_difference_interval_covers_the_truth_as_often_as_stated():
  """With effects of seeds and of problems; it may cover more often, hardly less."""
  rng, covered = np.random.default_rng(4), 0
  for _ in range(200):
    noise = rng.normal(0, 0.05, (5, 1)) + rng.normal(0, 0.5, (1, 100)) + rng.normal(0, 1, (5, 100))
    found = paired.difference(0.3 + noise, np.zeros_like(noise), draws=400)
    covered += found.low < 0.3 < found.high
  assert covered >= 180


def test_difference_refuses_other_seeds_or_problems():
  with pytest.raises(ValueError, match="the same seeds and problems"):
    paired.difference(np.zeros((3, 10)), np.zeros((5, 10)))
