"""Sampling with adapters: as from the merged weights, with no copy of those that are frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_policy import PARAMS, PROMPTS, STOPS, TINY, N, Words, assert_same, policy

from srl_jax.policy import lora as L
from srl_jax.policy.sharding import make_mesh
from srl_jax.rollout.sampler import Sampler
from srl_jax.rollout.slots import slot_shape


def adapters(seed):
  shape = L.Shape(4, 8.0, L.TARGETS["all"])
  rng = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32)
  return jax.jit(L.shard)(jax.tree.map(draw, L.abstract(shape, TINY)))


def sample(engine):
  return {group[0].prompt_id: group for group in engine.sample(PROMPTS, N, PARAMS)}


@pytest.fixture(scope="module")
def merged():
  """What two versions of the adapters sample when they are merged."""
  engine, found = Sampler(Words(), STOPS, 16), []
  for seed in (1, 2):
    engine.load_weights(L.merge(L.join(adapters(seed), policy()), jnp.float32), seed)
    found.append(sample(engine))
  engine.close()
  return found


@pytest.mark.parametrize(
  ("mesh", "shared"), [("data=1", True), ("data=2,fsdp=2,tensor=2", False), ("tensor=2", True)]
)
def test_adapters_sample_as_merged_weights(merged, mesh, shared):
  """Two versions on one base; the second load copies adapters only."""
  with jax.set_mesh(make_mesh(mesh)):
    base = L.unstack(policy()) if shared else policy()
    engine, kept = Sampler(Words(), STOPS, 16), []
    for seed in (1, 2):
      engine.load_weights(L.join(adapters(seed), base), seed)
      assert_same(sample(engine), merged[seed - 1])
      assert engine.version == seed
      kept.append([layer.q_proj[...] for layer in engine.layers] + [engine.model.norm[...]])
    for first, second in zip(*kept):
      assert first is second
    own = [layer.q_proj[...] for layer in base.layers] if shared else []
    for array, ours in zip(kept[0], own):
      assert array is ours
    engine.close()


@pytest.mark.parametrize("mesh", ["data=1", "data=2,fsdp=2,tensor=2"])
def test_programs_of_adapters_are_known(mesh):
  """load_weights and sample compile nothing that `calls` has not named."""
  with jax.set_mesh(make_mesh(mesh)):
    shape = slot_shape(16, N, 32, PARAMS.max_tokens, 1 if mesh == "data=1" else 4)
    engine = Sampler(Words(), STOPS, 16, shapes=[shape])
    base = L.unstack(policy()) if mesh == "data=1" else policy()
    model = L.join(adapters(1), base)
    for _, function, args, kwargs in engine.calls(jax.eval_shape(lambda: model)):
      function.lower(*args, **kwargs).compile()
    compiled = []
    listener = lambda event, *_, **__: compiled.append(event)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
      engine.load_weights(model, 1)
      sample(engine)
    finally:
      jax.monitoring.unregister_event_duration_listener(listener)
    assert not [event for event in compiled if "backend_compile" in event]
    assert isinstance(model.layers, nnx.List) == (mesh == "data=1")
