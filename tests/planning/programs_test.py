"""The programs of a plan, compiled for simulated devices, and the memory that they need."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest

from srl_jax import config as common
from srl_jax.learner import programs as learner_programs
from srl_jax.learner import update
from srl_jax.planning import estimate, programs
from srl_jax.planning.models import architecture
from srl_jax.planning.topologies import TOPOLOGIES
from srl_jax.policy.model import ModelConfig, abstract
from srl_jax.policy.sharding import make_mesh
from srl_jax.rollout import decoding_weights

MODEL = ModelConfig(1000, 32, 48, 2, 2, 1, 16)
WEIGHTS = sum(leaf.size for leaf in jax.tree.leaves(abstract(MODEL)))
SPEC = "data=2,fsdp=4,tensor=1"


@pytest.fixture(scope="module")
def config():
  config = common.defaults()
  config.rollout.engine = "vllm"
  config.data.max_prompt_tokens, config.rollout.max_tokens = 256, 256
  config.batch.tokens_per_device, config.batch.logprob_chunk = 1024, 64
  return config


@pytest.fixture(scope="module")
def state(config):
  mesh = make_mesh(SPEC)
  with jax.set_mesh(mesh):
    return programs.state_of(config, MODEL)


@pytest.fixture(scope="module")
def calls(config, state):
  with jax.set_mesh(make_mesh(SPEC)):
    return {call.name: call for call in programs.calls(config, state)}


def test_state_of_has_full_rows(state):
  assert state.shape.rows * state.shape.tokens == 1024
  with jax.set_mesh(make_mesh(SPEC)):
    tokens_bt = learner_programs.rows_of(state.shape).tokens_bt
  assert tokens_bt.size == 8 * 1024
  assert math.prod(tokens_bt.sharding.shard_shape(tokens_bt.shape)) == 1024


def test_device_bytes_are_a_devices_part(state):
  """Weights in float32, sharded in four along fsdp except the biases; moments twice that."""
  biases = 2 * (2 + 1 + 1) * 16  # of 2 layers: q, k and v, not cut
  expected = 4 * ((WEIGHTS - biases) // 4 + biases)
  assert programs.device_bytes(state.model) == expected
  assert programs.device_bytes(state.moments) == pytest.approx(2 * expected, rel=1e-3)


def test_calls_count_what_is_resident(calls, state):
  model, moments = map(programs.device_bytes, (state.model, state.moments))
  table = programs.device_bytes(state.model.embed_tokens)
  head = 2 * MODEL.vocab_size * MODEL.hidden_size  # the batch before, replicated, in bfloat16
  assert calls["apply"].resident == 0
  assert calls["accumulate"].resident == calls["score"].resident == moments
  assert calls["export"].resident == moments + model - table + head


def test_calls_keep_the_masters_beside_cast_layers(config, state, monkeypatch):
  """As on NVIDIA GPUs, where micro-batches use a copy of the layers in the compute type."""
  monkeypatch.setattr(ModelConfig, "by_layer", True)
  config = config.copy_and_resolve_references()
  config.batch.remat = "attention"
  with jax.set_mesh(make_mesh(SPEC)):
    calls = {call.name: call for call in programs.calls(config, state)}
  layers, moments = map(programs.device_bytes, (state.model.layers, state.moments))
  assert calls["accumulate"].resident == moments + layers
  assert calls["apply"].resident == 0 and calls["score"].resident == moments
  model = programs.device_bytes(state.model)
  _, weights, *_ = calls["accumulate"].args
  assert programs.device_bytes(weights) == model  # float32 here; half of it for layers in bfloat16
  # The policy with the least memory has no such copy.
  config.batch.remat = "full"
  with jax.set_mesh(make_mesh(SPEC)):
    calls = {call.name: call for call in programs.calls(config, state)}
  assert calls["accumulate"].resident == moments


def test_sampler_bytes_are_those_of_the_decoding_copy(config, state):
  """As the sampler makes it: compute type, replicated along fsdp, sharded along tensor."""
  config = config.copy_and_resolve_references()
  config.rollout.engine, config.dtype = "builtin", "bfloat16"
  assert programs.sampler_bytes(config, state) == 2 * WEIGHTS
  mesh = make_mesh("data=2,fsdp=2,tensor=2")
  halved = dataclasses.replace(MODEL, num_key_value_heads=2)
  config.dtype = "float32"
  with jax.set_mesh(mesh):
    state = programs.state_of(config, halved)
    kept = programs.sampler_bytes(config, state)
    real = programs.device_bytes(decoding_weights.decoding_copy.eval_shape(state.model))
    calls = {call.name: call for call in programs.calls(config, state)}
  assert kept == real
  model, moments = map(programs.device_bytes, (state.model, state.moments))
  assert calls["apply"].resident == kept
  assert calls["accumulate"].resident == calls["score"].resident == moments + kept
  assert "export" not in calls
  assert programs.loading(config, state).total() == model + moments + 2 * kept
  node = TOPOLOGIES["h100x8"]
  found = estimate.memory(state, {"load": programs.loading(config, state)}, node, kept)
  assert (found["sampler"], found["peak"]) == (kept, model + moments + 2 * kept)


def test_sampler_bytes_of_a_supervised_run(config, state):
  config = config.copy_and_resolve_references()
  config.rollout.engine, config.method = "builtin", "sft"
  assert programs.sampler_bytes(config, state) > 0
  config.train.eval_every = 0
  assert programs.sampler_bytes(config, state) == 0


def test_compile_call_compiles_every_program(calls, state):
  model, moments = map(programs.device_bytes, (state.model, state.moments))
  with jax.set_mesh(make_mesh(SPEC)):
    found = {name: programs.compile_call(call) for name, call in calls.items()}
  assert found["apply"].arguments == pytest.approx(2 * model + moments, rel=0.01)
  assert found["accumulate"].arguments > 2 * model
  for program in found.values():
    assert program.peak >= program.arguments
    assert program.total() == program.peak + program.resident


@pytest.fixture(scope="module")
def accumulate_hlo(calls):
  call = calls["accumulate"]
  with jax.set_mesh(make_mesh(SPEC)):
    return call.function.lower(*call.args, **call.kwargs).compile().as_text()


def test_accumulate_gathers_a_layers_weights_twice(accumulate_hlo):
  """For the forward pass and again for the backward pass; both are loops over layers."""
  gathered = re.findall(r" = \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(", accumulate_hlo)
  sizes = [math.prod(map(int, dimensions.split(","))) for dimensions in gathered]
  assert sizes.count(32 * 48) == 2 * 3  # gate, up and down projection


def test_accumulate_has_no_array_of_all_tokens_and_words(accumulate_hlo):
  """Logits exist for chunks of 64 tokens of 1,024, and on a device a quarter of their words for the
  tokens of four devices; in the backward pass too.
  """
  found = re.findall(r"\w\[([\d,]+)\]", accumulate_hlo)
  shapes = {tuple(map(int, dimensions.split(","))) for dimensions in found}
  with_vocabulary = [shape for shape in shapes if {250, 1000} & {*shape}]
  assert max(map(math.prod, with_vocabulary)) == 4 * 64 * 250
  # The embedding and the head, 1,000 words of 32, are cut too; so are their gradients.
  assert not any({1000, 32} <= {*shape} for shape in with_vocabulary)


def test_calls_have_the_arguments_of_further_passes(config, state):
  config = config.copy_and_resolve_references()
  config.algorithm.steps_per_batch, config.algorithm.kl = 2, 0.1
  with jax.set_mesh(make_mesh(SPEC)):
    calls = {call.name: call for call in programs.calls(config, state)}
  _, _, rows = calls["accumulate"].args
  assert rows.old_logprobs_bs.shape == rows.reference_logprobs_bs.shape == rows.targets_bs.shape
  assert sum(call.name == "score" for call in programs.calls(config, state)) == 1
  assert calls["apply"].resident == programs.device_bytes(state.model)


def test_loss_of_a_supervised_run(config):
  config = config.copy_and_resolve_references()
  config.method = "sft"
  assert update.loss_of(config) == update.Loss(None, chunk=64, remat="full")


def test_refused_bytes_reads_the_compilers_message():
  error = jax.errors.JaxRuntimeError
  all_of_it = (
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.50G of 15.75G hbm."
  )
  assert programs.refused_bytes(error(all_of_it), 2**30) == 25.5 * 2**30
  besides = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
  besides += "temporaries (18.50G) exceeds available HBM (15.75G)."
  assert programs.refused_bytes(error(besides), 2**30) == 19.5 * 2**30
  with pytest.raises(error, match="INTERNAL"):
    programs.refused_bytes(error("INTERNAL: Used 1G of 2G"), 0)


def test_architecture_of_known_names(tmp_path, monkeypatch):
  seven = architecture("Qwen/Qwen2.5-7B-Instruct", "bfloat16")
  weights = jax.tree.leaves(abstract(seven))
  assert sum(leaf.size for leaf in weights) == 7_615_616_512  # as the model card has it
  assert architecture("Qwen/Qwen2.5-Coder-7B", "bfloat16") == seven
  half = architecture("Qwen/Qwen2.5-0.5B", "float32")
  assert half.tie_word_embeddings and jnp.dtype(half.dtype) == jnp.float32
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  with pytest.raises(ValueError, match="unknown/model"):
    architecture("unknown/model", "float32")


def test_adapters_beside_frozen_weights(config):
  """Weights once in the compute type, shared with the sampler; all else is of the adapters."""
  config = config.copy_and_resolve_references()
  config.rollout.engine, config.dtype, config.algorithm.kl = "builtin", "bfloat16", 0.1
  config.lora.rank = 4
  adapters = 4 * 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))  # q, o; k, v; mlp; 2 layers
  model = dataclasses.replace(MODEL, dtype="bfloat16")
  for mesh, copy in [("data=2", 0), ("fsdp=2", 2 * WEIGHTS)]:
    with jax.set_mesh(make_mesh(mesh)):
      state = programs.state_of(config, model)
      calls = {call.name: call for call in programs.calls(config, state)}
      assert programs.sampler_bytes(config, state) == copy + 2 * adapters
      found = estimate.memory(state, {}, TOPOLOGIES["h100x8"], 0)
      assert "export" not in calls
      compiled = programs.compile_call(calls["accumulate"])
    if mesh == "data=2":
      assert found["parameters"] == 2 * WEIGHTS + 4 * adapters
      assert found["gradients"] == 4 * adapters
      assert found["moments"] == pytest.approx(8 * adapters, rel=1e-2)
      # The reference policy's adapters, the sampler's, and the frozen weights.
      assert calls["apply"].resident == 4 * adapters + 2 * adapters + 2 * WEIGHTS
      assert compiled.arguments >= found["parameters"] + found["gradients"]
      assert programs.loading(config, state).peak == found["parameters"] + 2 * adapters
