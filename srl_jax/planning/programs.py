"""The programs of a run, compiled for devices that are not there, and the memory they need."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from srl_jax.learner import optimizer, packing, update
from srl_jax.learner.rows import PackedGroup, Response, Rows
from srl_jax.planning.collectives import Collective, collectives
from srl_jax.policy import weights
from srl_jax.policy.model import ModelConfig, Qwen2, abstract
from srl_jax.policy.sharding import act_spec, shards

SHORT_RESPONSE = 128  # tokens
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class State(NamedTuple):
  """The arrays that a run keeps on its devices, as shapes with layouts.

  Fields: model (float32 masters), tx and its moments; rows, a micro-batch at its largest; loss.
  """

  model: Qwen2
  tx: object
  moments: object
  rows: Rows
  loss: update.Loss


class Program(NamedTuple):
  """A compiled program, in bytes of one device.

  Fields: name; arguments; temporaries; peak, the most that is in use while it runs, arguments and
  results included; resident, what else the run keeps meanwhile; collectives.
  """

  name: str
  arguments: int
  temporaries: int
  peak: int
  resident: int
  collectives: list[Collective]

  def total(self) -> int:
    return self.peak + self.resident


def state_of(config, model_config: ModelConfig, mesh) -> State:
  """The state of a run of `config`; call it with the mesh set."""
  model = _on(mesh, abstract(model_config))
  tx = optimizer.make(config.optimizer, 1000)
  moments = _on(mesh, jax.eval_shape(tx.init, model))
  rows = largest_rows(config, mesh, layout=model_config.layout)
  return State(model, tx, moments, rows, update.loss_of(config))


def largest_rows(config, mesh, layout: str) -> Rows:
  """A micro-batch at its largest: the longest prompts, with the longest responses or with short
  ones, of which a row holds more and so has more lines; whichever has more elements.

  The packing of a run makes it, so that the programs have the shapes of a run.
  """
  devices = shards("b", mesh)
  long = _full_rows(config, devices, layout, config.rollout.max_tokens)
  short = _full_rows(config, devices, layout, SHORT_RESPONSE)
  rows = max(long, short, key=_elements)
  sharding = NamedSharding(mesh, act_spec("b"))
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(shape, rows)


def _elements(rows: Rows) -> int:
  return sum(x.size for x in jax.tree.leaves(rows))


def _full_rows(config, devices: int, layout: str, length: int) -> Rows:
  """A micro-batch of as many groups of the longest prompts as rows hold; responses of `length`."""
  room = config.batch.tokens_per_device
  prompt = config.data.max_prompt_tokens
  count = 1 if config.method == "sft" else config.rollout.samples
  length = min(length, (room - prompt) // count)  # a row must hold a prompt with all its responses
  responses = [Response([0] * length, [0.0] * length, 1.0, 1.0)] * count
  group = PackedGroup([0] * prompt, responses)
  return packing.pack(
    [group] * (room // group.size() * devices),
    tokens_per_device=room,
    shards=devices,
    layout=layout,
  )[0]


class Call(NamedTuple):
  """A program to compile: its name, the jitted function, its arguments, array shapes and static
  ones, and the bytes of one device that a run keeps besides.
  """

  name: str
  function: Callable
  arrays: dict
  static: dict
  resident: int


def sampler_bytes(config, state: State) -> int:
  """Bytes of one device of the weights that the built-in engine samples with (rollout.sampler).

  It keeps them beside the masters from the first sampling to the end of the run: in the compute
  type, replicated along fsdp and sharded along tensor. 0 where servers sample, or nothing does.
  """
  # A supervised run loads weights only to be measured.
  samples = config.method != "sft" or config.train.eval_every or config.eval.benchmark
  if config.rollout.engine != "builtin" or not samples:
    return 0

  def copy(x):
    axes = [None if axis == "fsdp" else axis for axis in x.sharding.spec.partitions]
    gathered = NamedSharding(x.sharding.mesh, jax.P(*axes))
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(config.dtype), sharding=gathered)

  return device_bytes(jax.tree.map(copy, state.model))


def loading(config, state: State) -> Program:
  """The moment in which the built-in engine has its old weights and the new ones, from shapes: what
  the gathers need besides is not in it.
  """
  model, copy = device_bytes(state.model), sampler_bytes(config, state)
  return Program("load", model, 0, model + copy, _beside(config, state), [])


def _beside(config, state: State) -> int:
  """Bytes of one device that a run keeps beside weights and gradients."""
  frozen = device_bytes(state.model) if config.algorithm.kl else 0  # the reference policy
  return frozen + device_bytes(state.moments) + sampler_bytes(config, state)


def calls(config, state: State) -> list[Call]:
  """The programs of a run; weights are exported to servers only."""
  model, tx, moments, rows, loss = state
  old, reference = _scores(config, rows)
  batch = dict(grads=model, model=model, rows=rows)
  batch |= dict(old_logprobs_bs=old, reference_logprobs_bs=reference)
  weight = jax.tree.leaves(model.embed_tokens)[0]  # the largest tensor
  table = dict(name="embed_tokens", dtype=jnp.dtype(jnp.bfloat16))
  layer = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(weight.sharding.mesh, jax.P()))
  beside = _beside(config, state)
  step = dict(model=model, moments=moments, grads=model)
  # What a run keeps besides excludes a call's own arguments: `apply` has the moments among them.
  found = [
    Call("apply", update.apply, step, {"tx": tx}, beside - device_bytes(moments)),
    Call("accumulate", update.accumulate, batch, {"loss": loss}, beside),
    Call("score", update.logprobs_of, dict(model=model, rows=rows), {"loss": loss}, beside),
  ]
  if config.rollout.engine == "vllm":
    # Weights go to the servers one at a time; all others stay on the devices besides.
    rest = beside + device_bytes(model) - device_bytes(weight)
    found.append(Call("export", weights.to_hf, dict(weight=weight, layer=layer), table, rest))
  return found


def _scores(config, rows):
  """(old, reference) log-probs of rows, where the config has them."""
  scores = jax.ShapeDtypeStruct(
    rows.targets_bs.shape, jnp.float32, sharding=rows.tokens_bt.sharding
  )
  several = config.method != "sft" and config.algorithm.steps_per_batch > 1
  return (scores if several else None), (scores if config.algorithm.kl else None)


def compile_call(call: Call, per_node: int) -> Program:
  """Compiles a program; one that the compiler finds too large has no temporaries and collectives.

  per_node: devices of a node, see collectives.
  """
  lowered = call.function.lower(**call.arrays, **call.static)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    arguments = device_bytes(call.arrays)
    needed = refused_bytes(error, arguments)
    return Program(call.name, arguments, 0, needed, call.resident, [])
  memory = compiled.memory_analysis()
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  # The compilers' own peak leaves out the gaps between live arrays.
  peak = max(memory.peak_memory_in_bytes, arguments + results + temporaries)
  peak += memory.generated_code_size_in_bytes
  found = collectives(compiled.as_text(), per_node)
  return Program(call.name, arguments, temporaries, peak, call.resident, found)


def refused_bytes(error: Exception, arguments: int) -> int:
  """The bytes that a program needs which the compiler refused for lack of memory.

  Some versions name all bytes that it uses, others only its temporaries: the arguments are then
  added. Raises `error` if it has another reason.
  """
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
  for leaf in jax.tree.leaves(tree):
    part = leaf.sharding.shard_shape(leaf.shape)
    total += leaf.dtype.itemsize * math.prod(part)
  return total


def _on(mesh, tree):
  """The shapes of a tree with their layouts on the mesh."""

  def shape(x):
    spec = x.sharding.spec if x.sharding is not None else jax.P()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

  return jax.tree.map(shape, tree)
