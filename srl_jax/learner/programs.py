"""The programs of a run, known before its first step, and compiled ahead in threads.

Every program that training, validation and the benchmark call is named here with the shapes of its
arguments. `jax.jit` keeps what `lower(...).compile()` made, so the run's own calls find it.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from srl_jax.learner import update
from srl_jax.learner.packing import RowShape
from srl_jax.learner.rows import Rows
from srl_jax.policy import cpu
from srl_jax.policy.attention import Lines
from srl_jax.policy.sharding import act_spec, keep_mesh, shards


class Call(NamedTuple):
  """A call of a program: its name, the jitted function, the shapes of its arguments."""

  name: str
  function: Callable
  args: tuple = ()
  kwargs: dict = {}


def rows_of(shape: RowShape) -> Rows:
  """A micro-batch of that shape on the mesh that is set, as jax.ShapeDtypeStructs."""
  b, t = shape.rows * shards("b"), shape.tokens
  mesh, g = jax.sharding.get_mesh(), shape.samples
  sharding = None if mesh.empty else NamedSharding(mesh, act_spec("b"))
  array = lambda dtype, *sizes: jax.ShapeDtypeStruct((b, *sizes), dtype, sharding=sharding)
  layout = None
  if shape.layout == "lines":
    layout = Lines(array(jnp.int32, shape.places, shape.line), array(jnp.int32, t, g))
  elif shape.layout == "blocks":
    s, p, r = shape.places, shape.prompt, shape.response
    layout = cpu.Blocks(
      array(jnp.int32, s, p), array(jnp.int32, s, g, r), array(jnp.int32, t)
    )
  ints, floats = [array(jnp.int32, t)] * 6, [array(jnp.float32, t)] * 3
  return Rows(*ints, *floats, layout)


def update_calls(config, state: update.TrainState, tx, shapes: Sequence[RowShape]) -> list[Call]:
  """The programs of the update.

  Args:
    config: of the run.
    state: arrays, or their shapes with their layouts on the mesh that is set.
    tx: the optimiser.
    shapes: of the micro-batches.
  """
  loss = update.loss_of(config)
  several = config.method != "sft" and config.algorithm.steps_per_batch > 1
  kl = config.method != "sft" and config.algorithm.kl > 0
  model, moments = shapes_of(state.model), shapes_of(state.moments)
  calls = [
    Call("zeros", update.zeros, (model,)),
    Call("apply", update.apply, (tx, model, moments, model)),
  ]
  for shape in shapes:
    rows = rows_of(shape)
    scores = jax.ShapeDtypeStruct(
      rows.targets_bs.shape, jnp.float32, sharding=rows.targets_bs.sharding
    )
    old, reference = scores if several else None, scores if kl else None
    args = (model, model, rows, old, reference)
    calls.append(Call("accumulate", update.accumulate, args, {"loss": loss}))
    if several or kl or config.method == "sft":  # sft: the loss of held-out targets
      calls.append(Call("score", update.logprobs_of, (model, rows), {"loss": loss}))
  return calls


def shapes_of(tree):
  """The arrays of a tree as jax.ShapeDtypeStructs with their shardings."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class Ahead:
  """Compiles calls side by side in threads; `wait` returns when all are compiled.

  Args: calls; say: shows a line of progress, at most every SECONDS.
  """

  SECONDS = 5.0

  def __init__(self, calls: Sequence[Call]):
    self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "compile")
    compile_call = keep_mesh(_compile)
    self._futures = [self._pool.submit(compile_call, call) for call in calls]

  def wait(self, say: Callable[[str], None] = lambda line: None) -> None:
    pass


def _compile(call: Call) -> None:
  call.function.lower(*call.args, **call.kwargs).compile()
