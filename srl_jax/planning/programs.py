"""The programs of a run, compiled for devices that are not there, and the memory they need."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from srl_jax.learner import optimizer, packing, programs, start, update
from srl_jax.policy import hf_tensors
from srl_jax.policy.lora import split
from srl_jax.policy.model import ModelConfig, Qwen2
from srl_jax.policy.sharding import on_mesh, shards
from srl_jax.rollout import slots

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class State(NamedTuple):
  """The arrays that a run keeps on its devices, as shapes with layouts.

  Fields: model (float32 masters, or frozen weights with float32 adapters), tx and its moments;
  shape, of a micro-batch at its largest.
  """

  model: Qwen2
  tx: object
  moments: object
  shape: packing.RowShape


class Program(NamedTuple):
  """A compiled program, in bytes of one device.

  Fields: name; arguments; temporaries; peak, the most that is in use while it runs, arguments and
  results included; resident, what else the run keeps meanwhile.
  """

  name: str
  arguments: int
  temporaries: int
  peak: int
  resident: int

  def total(self) -> int:
    return self.peak + self.resident


def state_of(config, model_config: ModelConfig) -> State:
  """The state of a run of `config`; call it with the mesh set."""
  model = on_mesh(start.policy_shapes(config, model_config))
  tx = optimizer.of_run(config, 1000)
  moments = on_mesh(jax.eval_shape(tx.init, split(model)[0]))
  return State(model, tx, moments, largest_shape(config, model_config.layout))


def largest_shape(config, layout: str) -> packing.RowShape:
  """The shape of a run's micro-batches with the most elements, from its config alone.

  The longest lengths are the config's limits; the means are assumed to be half of the longest
  prompt and a quarter of the longest response.
  """
  prompt, response = config.data.max_prompt_tokens, config.rollout.max_tokens
  samples = 1 if config.method == "sft" else config.rollout.samples
  lengths = packing.Lengths(
    prompt=prompt,
    response=response,
    line=prompt + response,
    samples=samples,
    expected=prompt / 2 / samples + response / 4,
    typical=0,
  )
  shapes = packing.row_shapes(lengths, config.batch.tokens_per_device, layout)
  elements = lambda shape: sum(x.size for x in jax.tree.leaves(programs.rows_of(shape)))
  return max(shapes, key=elements)


class Call(NamedTuple):
  """A call of learner.programs, and the bytes of one device that a run keeps besides."""

  name: str
  function: Callable
  args: tuple
  kwargs: dict
  resident: int


def sampler_bytes(config, state: State) -> int:
  """Bytes of one device of the weights that the built-in engine samples with (rollout.sampler).

  It keeps them beside the run's own from the first sampling to the end of the run: in the compute
  type, replicated along fsdp and sharded along tensor. Of frozen weights it has a copy only where
  it cannot use the run's own. 0 where servers sample, or nothing does.
  """
  trained, frozen = split(state.model)
  kept = _decoding_bytes(config, trained)
  if kept and frozen is not None and not start.can_share(config.rollout.engine):
    kept += _decoding_bytes(config, frozen)
  return kept


def _decoding_bytes(config, weights) -> int:
  """Bytes of one device of a copy of `weights` to decode with; 0 if the run makes none."""
  # A supervised run loads weights only to be measured.
  samples = config.method != "sft" or config.train.eval_every or config.eval.benchmark
  if config.rollout.engine != "builtin" or not samples:
    return 0

  def copy(x):
    axes = [None if axis == "fsdp" else axis for axis in x.sharding.spec.partitions]
    gathered = NamedSharding(x.sharding.mesh, jax.P(*axes))
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(config.dtype), sharding=gathered)

  return device_bytes(jax.tree.map(copy, weights))


def loading(config, state: State) -> Program:
  """The memory while the built-in engine has its old weights and the new ones, from shapes alone.

  Temporaries of the all-gathers are not included.
  """
  model, copy = device_bytes(state.model), _decoding_bytes(config, split(state.model)[0])
  return Program("load", model, 0, model + copy, _beside(config, state))


def sampling(config, state: State) -> Program:
  """The memory while the built-in engine samples for training, from shapes alone.

  Its KV caches exist only then. Temporaries of prefill and decode are not included.
  """
  config_of_model, rollout = state.model.config, config.rollout
  prompt, response = config.data.max_prompt_tokens, rollout.max_tokens
  on = shards("b"), config_of_model.attention
  shape = slots.slot_shape(rollout.width, rollout.samples, prompt, response, *on)
  caches = on_mesh(slots.empty.eval_shape(shape=shape, config=config_of_model))
  weights = sampler_bytes(config, state)
  own = device_bytes(state.model) + _beside(config, state) - weights
  return Program("sample", weights, device_bytes(caches), weights + device_bytes(caches), own)


def _beside(config, state: State) -> int:
  """Bytes of one device that a run keeps beside weights and gradients."""
  # The reference policy has what is trained as it was at the start; frozen weights are its own too.
  reference = device_bytes(split(state.model)[0]) if config.algorithm.kl else 0
  return reference + device_bytes(state.moments) + sampler_bytes(config, state)


def calls(config, state: State) -> list[Call]:
  """The programs of a run that need the most memory; weights are exported to servers only.

  Adapters are exported too, but that needs next to nothing.
  """
  model, beside = state.model, _beside(config, state)
  first = update.TrainState(0, model, state.moments)
  trained, frozen = split(model)
  copied, found = update.uses_copy(trained, update.loss_of(config)), []
  for call in programs.update_calls(config, first, state.tx, [state.shape], always_score=True):
    # What a run keeps besides excludes a call's own arguments: `apply` has the moments among them.
    own = device_bytes(state.moments) - device_bytes(frozen) if call.name == "apply" else 0
    # `accumulate` may have a copy of the layers (update.step_weights), beside the masters.
    if call.name == "accumulate" and copied:
      own -= device_bytes(model.layers)
    if call.name not in ("zeros", "cast"):
      found.append(Call(*call, beside - own))
  if config.rollout.engine == "vllm" and frozen is None:
    # Weights go to the servers in batches; all others stay on the devices besides.
    weight = jax.tree.leaves(model.embed_tokens)[0]  # the largest batch of a large model
    mesh = weight.sharding.mesh
    layer = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, jax.P()))
    how = dict(first=layer, count=1, dtype=jnp.dtype(config.dtype))
    table = dict(weights={"embed_tokens": weight}) | how
    rest = beside + device_bytes(model) - device_bytes(weight)
    # While a batch is made, the one before it is still on the devices: at most the head.
    if "lm_head" in hf_tensors.params_of(model):
      rest += weight.size * jnp.dtype(config.dtype).itemsize
    found.append(Call("export", hf_tensors.export, (), table, rest))
  return found


def compile_call(call: Call) -> Program:
  """Compiles a program; one that the compiler finds too large has no temporaries."""
  lowered = call.function.lower(*call.args, **call.kwargs)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    arguments = device_bytes((call.args, call.kwargs))
    needed = refused_bytes(error, arguments)
    return Program(call.name, arguments, 0, needed, call.resident)
  memory = compiled.memory_analysis()
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  peak = programs.program_bytes(compiled)
  return Program(call.name, arguments, temporaries, peak, call.resident)


def refused_bytes(error: Exception, arguments: int) -> int:
  """The bytes that a program needs which the compiler refused for lack of memory.

  Some versions name all bytes that it uses, others only its temporaries: the arguments are then
  added. Raises `error` if it has another reason.
  """
  # XLA writes sizes such as 12.34G.
  size = r"([\d.]+)([KMGT])"
  used = re.search(rf"Used {size}i?B? of", str(error))
  temporaries = re.search(rf"HLO temporaries \({size}i?B?\)", str(error))
  found = used or temporaries
  if "RESOURCE_EXHAUSTED" not in str(error) or not found:
    raise error
  return int(float(found[1]) * _UNITS[found[2]]) + (0 if used else arguments)


def device_bytes(tree) -> int:
  """Bytes of one device's part of all arrays of a tree of shapes with layouts."""
  total = 0
  arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.ShapeDtypeStruct)]
  for leaf in arrays:
    part = leaf.sharding.shard_shape(leaf.shape)
    total += leaf.dtype.itemsize * math.prod(part)
  return total
