"""Picking tokens: the random number of each place, the softmax, and what top-p and top-k leave."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from srl_jax.rollout import picking


def test_pick_draws_from_the_softmax():
  """Chi-square over 16,384 draws of one distribution, and its power against a near one."""
  logits_v = jnp.asarray(np.random.default_rng(0).normal(0, 1.5, 20), jnp.float32)
  draw = jax.jit(
    lambda temperature: picking.pick(
      jnp.broadcast_to(logits_v, (128, 128, 20)),
      jnp.array([1, 2], jnp.uint32),
      jnp.arange(128, dtype=jnp.uint32),
      jnp.zeros((128, 128), jnp.int32),
      picking.Decoding(temperature, 1.0, 0, ()),
    ),
    static_argnums=0,
  )
  for temperature in (1.0, 0.7):
    drawn, logprobs = draw(temperature)
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=20)
    expected = np.asarray(jax.nn.softmax(logits_v / temperature), np.float64)
    p_value = lambda p: scipy.stats.chisquare(counts, p / p.sum() * counts.sum()).pvalue  # noqa: B023
    assert p_value(expected) > 1e-3
    assert p_value(np.asarray(jax.nn.softmax(logits_v / temperature * 1.1), np.float64)) < 1e-6
    np.testing.assert_allclose(logprobs, np.log(expected)[np.asarray(drawn)], atol=1e-5)


def test_draw_over_several_blocks():
  """300 entries, two thirds of them impossible, in three blocks, one of next to no weight."""
  rng = np.random.default_rng(1)
  probs_v = np.where(np.arange(300) % 3 == 0, rng.uniform(size=300), 0.0)
  probs_v[128:256] *= 1e-6
  streams = jnp.arange(128, dtype=jnp.uint32)
  keys = picking.random_keys(
    jnp.array([1, 2], jnp.uint32), streams, jnp.zeros((128, 512), jnp.int32)
  )
  probs_bgv = jnp.broadcast_to(jnp.asarray(probs_v, jnp.float32), (128, 512, 300))
  drawn = np.asarray(jax.jit(picking.draw)(probs_bgv, keys)).ravel()
  counts = np.bincount(drawn, minlength=300)
  assert (counts[probs_v == 0] == 0).all()
  likely = probs_v > 1e-3
  expected = probs_v[likely] / probs_v.sum() * counts.sum()
  assert counts[~likely].sum() <= 5
  assert scipy.stats.chisquare(counts[likely], expected, sum_check=False).pvalue > 1e-3
  assert scipy.stats.chisquare(counts[likely], expected[::-1], sum_check=False).pvalue < 1e-6


def test_draw_at_the_ends_of_the_share():
  """A share of 0 takes the first possible entry, one just below 1 the last or the likeliest."""
  weights = jnp.array([[[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]])
  first = lambda share: int(picking._first_above(weights, jnp.array([[share]], jnp.float32))[0, 0])
  assert [first(share) for share in (0.0, 0.2, 0.3, 0.7, 0.8)] == [1, 1, 3, 3, 4]
  assert first(np.nextafter(np.float32(1), np.float32(0))) == 4


def test_truncate_by_hand():
  logprobs = jnp.log(jnp.array([[[0.1, 0.4, 0.2, 0.3]]]))
  kept = lambda *how: np.isfinite(np.asarray(picking.truncate(logprobs, *how)))[0, 0].tolist()
  assert kept(1.0, 0) == [True] * 4
  assert kept(0.39, 0) == [False, True, False, False]
  assert kept(0.41, 0) == [False, True, False, True]
  assert kept(0.75, 0) == [False, True, True, True]
  assert kept(1.0, 2) == [False, True, False, True]
  assert kept(0.41, 1) == [False, True, False, False]
  assert kept(1.0, 4) == kept(1.0, 9) == [True] * 4


def test_positions_have_random_numbers_of_their_own():
  keys = lambda positions: np.asarray(
    jax.random.key_data(picking.random_keys(jnp.array([3, 5], jnp.uint32), streams, positions))
  )
  streams = jnp.array([picking.stream_of(id) for id in ("a", "b")], jnp.uint32)
  found = np.concatenate([keys(jnp.full((2, 3), t)).reshape(6, 2) for t in range(4)])
  assert len({tuple(key) for key in found}) == 24
  alone = picking.random_keys(jnp.array([3, 5], jnp.uint32), streams[1:], jnp.full((1, 3), 2))
  assert (np.asarray(jax.random.key_data(alone)).reshape(3, 2) == found[15:18]).all()
