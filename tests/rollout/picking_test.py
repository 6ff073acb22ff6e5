"""Sampling tokens: the random key of each token, and the distribution of both platforms' draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from srl_jax.policy import cpu
from srl_jax.rollout import picking


@pytest.mark.parametrize("on_cpu", [False, True])
def test_pick_draws_from_the_softmax(on_cpu):
  """Chi-square over 16,384 draws of one distribution, and its power against a near one."""
  logits_v = jnp.asarray(np.random.default_rng(0).normal(0, 1.5, 20), jnp.float32)
  draw = jax.jit(
    lambda temperature: picking.pick(
      jnp.broadcast_to(logits_v, (128, 128, 20)),
      jnp.array([1, 2], jnp.uint32),
      jnp.arange(128, dtype=jnp.uint32),
      jnp.zeros((128, 128), jnp.int32),
      picking.Decoding(temperature, (), on_cpu),
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


def test_categorical_on_cpus_over_several_blocks():
  """300 entries, two thirds of them impossible, in three blocks, one of next to no weight."""
  rng = np.random.default_rng(1)
  probs_v = np.where(np.arange(300) % 3 == 0, rng.uniform(size=300), 0.0)
  probs_v[128:256] *= 1e-6
  logprobs_v = jnp.log(jnp.asarray(probs_v, jnp.float32))
  keys = jax.random.split(jax.random.key(0), 2**16)
  drawn = np.asarray(jax.jit(jax.vmap(lambda key: cpu.categorical(key, logprobs_v)))(keys))
  counts = np.bincount(drawn, minlength=300)
  assert (counts[probs_v == 0] == 0).all()
  likely = probs_v > 1e-3
  expected = probs_v[likely] / probs_v.sum() * counts.sum()
  assert counts[~likely].sum() <= 5
  assert scipy.stats.chisquare(counts[likely], expected, sum_check=False).pvalue > 1e-3
  assert scipy.stats.chisquare(counts[likely], expected[::-1], sum_check=False).pvalue < 1e-6


@pytest.mark.parametrize("share", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_categorical_on_cpus_at_the_ends_of_the_interval(monkeypatch, share):
  """Neither the least nor the largest uniform number gives an impossible token."""
  monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, share))
  probs_v = np.zeros(400, np.float32)
  probs_v[[130, 200, 399]] = 1 / 3
  first = int(cpu.categorical(jax.random.key(0), jnp.log(probs_v)))
  assert first == (130 if share == 0 else 399)


def test_every_token_has_another_key():
  keys = lambda positions: np.asarray(
    jax.random.key_data(picking.random_keys(jnp.array([3, 5], jnp.uint32), streams, positions))
  )
  streams = jnp.array([picking.stream_of(id) for id in ("a", "b")], jnp.uint32)
  found = np.concatenate([keys(jnp.full((2, 3), t)).reshape(6, 2) for t in range(4)])
  assert len({tuple(key) for key in found}) == 24
  alone = picking.random_keys(jnp.array([3, 5], jnp.uint32), streams[1:], jnp.full((1, 3), 2))
  assert (np.asarray(jax.random.key_data(alone)).reshape(3, 2) == found[15:18]).all()
