"""Learning rates and the optimiser chain."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.learner import optimizer


def settings(**given):
  given = dict(lr=1.0, schedule="constant", warmup=0.0, b2=0.999, weight_decay=0.0) | given
  return types.SimpleNamespace(**dict(grad_norm=1.0) | given)


def rates(steps, **given):
  rate = optimizer.learning_rate(settings(**given), steps)
  return np.array([rate(step) for step in range(steps)])


def test_make_constant_without_warmup():
  assert (rates(5, lr=0.25) == 0.25).all()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_make_warmup_rises_linearly_from_the_first_step(schedule):
  """Three of ten steps: 1/4, 2/4, 3/4, then the full rate."""
  found = rates(10, schedule=schedule, warmup=0.3)
  np.testing.assert_allclose(found[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
  assert (found > 0).all()


def test_make_decays_by_hand():
  np.testing.assert_allclose(rates(4, schedule="linear"), [1, 0.75, 0.5, 0.25], rtol=1e-6)
  cosine = (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
  np.testing.assert_allclose(rates(4, schedule="cosine"), cosine, rtol=1e-6)


def one_step(gradient, weight, **given):
  tx = optimizer.make(settings(**given), 10)
  updates, _ = tx.update(jnp.array(gradient), tx.init(jnp.array(weight)), jnp.array(weight))
  return np.asarray(updates)


def test_make_first_step_by_hand():
  """Adam's first step is lr x sign, whatever the gradient's size; decay adds lr x decay x w."""
  np.testing.assert_allclose(one_step([3.0, -4.0], [1.0, 1.0], lr=0.1), [-0.1, 0.1], rtol=1e-5)
  decayed = one_step([3.0, -4.0], [1.0, 2.0], lr=0.1, weight_decay=0.5)
  np.testing.assert_allclose(decayed, [-0.15, 0.0], atol=1e-6)


def test_make_clips_the_global_norm():
  """To grad_norm, over all weights together; a smaller gradient is left as it is."""
  tx = optimizer.make(settings(grad_norm=1.0), 10)
  weights = {"a": jnp.zeros(1), "b": jnp.zeros(1)}

  def first_moment(a, b):
    _, state = tx.update({"a": jnp.array([a]), "b": jnp.array([b])}, tx.init(weights), weights)
    moments = state[1][0].mu
    return float(moments["a"][0]), float(moments["b"][0])

  np.testing.assert_allclose(first_moment(3.0, 4.0), (0.06, 0.08), rtol=1e-5)  # (1 - b1) * g / 5
  np.testing.assert_allclose(first_moment(0.3, 0.4), (0.03, 0.04), rtol=1e-5)
