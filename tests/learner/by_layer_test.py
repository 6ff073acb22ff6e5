"""The update with the weights of each layer separate and cast once a step, as NVIDIA GPUs run it.

by_layer is set for the CPUs here; everything else is the code of a card's run.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import FrozenConfigDict

from srl_jax.config import defaults
from srl_jax.learner import batch, optimizer, packing, programs, update
from srl_jax.policy import by_layer
from srl_jax.policy import model as M
from srl_jax.policy.sharding import make_mesh, on_mesh

LOSS = update.Loss(FrozenConfigDict(defaults().algorithm), chunk=32, remat="attention")


@pytest.fixture
def separate(monkeypatch):
  """Every model computes by layer."""
  monkeypatch.setattr(M.ModelConfig, "by_layer", True)


@pytest.fixture
def half(policy, tiny):
  """half() -> a policy with float32 masters that computes in bfloat16, as a new copy."""
  config = dataclasses.replace(tiny, dtype="bfloat16")

  def make():
    tree = jax.tree.structure(M.abstract(config))
    return tree.unflatten(jax.tree.leaves(policy()))

  return make


def micro_batches(groups, shards=1):
  weighed = batch.weigh(groups, "sequence", 32)
  packed = packing.pack(weighed, tokens_per_device=64, shards=shards, layout="lines")
  return [update.on_device(rows) for rows in packed]


def summed(weights, batches):
  """The sum of the gradients of micro-batches."""
  grads = update.zeros(weights)
  for rows in batches:
    grads, *_ = update.accumulate(grads, weights, rows, None, None, loss=LOSS)
  return grads


def test_cast_has_each_layer_in_the_compute_type(half):
  model = half()
  found = by_layer.cast(model)
  assert isinstance(found.layers, nnx.List) and len(found.layers) == 3
  for i, layer in enumerate(found.layers):
    expected = model.layers.gate_proj[...][i].astype(jnp.bfloat16)
    assert (layer.gate_proj[...] == expected).all() and layer.gate_proj[...].dtype == jnp.bfloat16
  assert found.lm_head[...] is model.lm_head[...]  # gradients are summed in these, in float32
  assert found.embed_tokens[...].dtype == jnp.float32
  assert not isinstance(model.layers, nnx.List)
  stacked = by_layer.stack(found)
  for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(model)):
    np.testing.assert_array_equal(a, b.astype(a.dtype))


def test_summed_gradients_equal_those_of_stacked_masters(half, groups):
  """Up to bfloat16's rounding, which XLA places elsewhere in an unrolled loop."""
  model, batches = half(), micro_batches(groups)
  assert len(batches) > 1
  separate, stacked = summed(by_layer.cast(model), batches), summed(model, batches)
  assert {leaf.dtype for leaf in jax.tree.leaves(separate)} == {jnp.dtype("float32")}
  for a, b in zip(jax.tree.leaves(by_layer.stack(separate)), jax.tree.leaves(stacked)):
    assert jnp.linalg.norm(b) > 0 and jnp.linalg.norm(a - b) < 5e-2 * jnp.linalg.norm(b)


def test_gradients_are_added_in_float32(half, groups):
  """In bfloat16, a sum that is 1,000 times as large as a gradient would not change by it."""
  weights, rows = by_layer.cast(half()), micro_batches(groups)[0]
  once = summed(weights, [rows])
  start = jax.tree.map(lambda grad: 1000 * grad, once)
  twice, *_ = update.accumulate(start, weights, rows, None, None, loss=LOSS)
  for a, b in zip(jax.tree.leaves(twice), jax.tree.leaves(once)):
    np.testing.assert_allclose(np.asarray(a), 1001 * np.asarray(b), rtol=1e-5, atol=1e-30)


def shapes_of(groups) -> list:
  weighed = batch.weigh(groups, "sequence", 32)
  return packing.row_shapes(packing.lengths_of(weighed), 64, "lines")


def test_train_step_runs_the_named_programs_and_gives_the_same_weights(
  separate, policy, groups, monkeypatch
):
  values = dict(schedule="constant", warmup=0.0, b2=0.999, weight_decay=0.0, grad_norm=1.0)
  tx = optimizer.make(types.SimpleNamespace(lr=1e-3, **values), 10)

  def start():
    model = policy()
    return update.TrainState(0, model, update.init_moments(tx, model))

  with jax.set_mesh(make_mesh("fsdp=2")):
    state, batches = start(), micro_batches(groups, shards=2)
    abstract = on_mesh(jax.eval_shape(lambda: M.shard(policy())))
    moments = on_mesh(jax.eval_shape(tx.init, abstract))
    config = defaults()
    config.batch.logprob_chunk, config.batch.remat = LOSS.chunk, LOSS.remat
    of_run = update.TrainState(0, abstract, moments)
    calls = programs.update_calls(config, of_run, tx, shapes_of(groups))
    assert {call.name for call in calls} == {"zeros", "cast", "apply", "accumulate"}
    programs.Ahead(calls).wait(print)
    counter = programs.Counter()
    try:
      found, output = update.train_step(tx, state, batches, LOSS)
    finally:
      counter.close()
    compiled = counter.take()
    assert compiled["programs_compiled"] + compiled["programs_loaded"] == 0
    assert not isinstance(found.model.layers, nnx.List)

    monkeypatch.setattr(M.ModelConfig, "by_layer", False)
    wanted, expected = update.train_step(tx, start(), batches, LOSS)
    np.testing.assert_allclose(output.grad_norm, expected.grad_norm, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found.model), jax.tree.leaves(wanted.model)):
      np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=2e-4)
