"""The programs of a run, known before its first step, and compiled ahead in threads.

Every program that training, validation and the benchmark call is named here with the shapes of its
arguments. `jax.jit` keeps what `lower(...).compile()` made, so the run's own calls find it.
"""

import concurrent.futures
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from srl_jax.learner import packing, update
from srl_jax.learner.packing import RowShape
from srl_jax.learner.rows import Rows
from srl_jax.policy import by_layer, cpu
from srl_jax.policy.attention import Lines
from srl_jax.policy.lora import split
from srl_jax.policy.sharding import act_spec, keep_mesh, on_mesh, shards

SECONDS = 5.0  # between two lines of progress
CACHE_BYTES = 4 << 30


class Call(NamedTuple):
  """A call of a program: its name, the jitted function, the shapes of its arguments."""

  name: str
  function: Callable
  args: tuple = ()
  kwargs: dict = {}


def rows_of(shape: RowShape, old: bool = False, reference: bool = False) -> Rows:
  """A micro-batch of that shape on the mesh that is set, as jax.ShapeDtypeStructs.

  old, reference: whether it has log-probs under these policies.

  It must equal what rows.fill_rows and update.on_device make, in every shape, type and sharding:
  a difference would compile a second program at the first step.
  """
  b, t = shape.rows * shards("b"), shape.tokens
  mesh, g = jax.sharding.get_mesh(), shape.samples
  sharding = None if mesh.empty else NamedSharding(mesh, act_spec("b"))
  array = lambda dtype, *sizes: jax.ShapeDtypeStruct((b, *sizes), dtype, sharding=sharding)
  layout = None
  if shape.layout == "lines":
    layout = Lines(array(jnp.int32, shape.places, shape.line), array(jnp.int32, t, g))
  elif shape.layout == "blocks":
    s, p, r = shape.places, shape.prompt, shape.response
    layout = cpu.Blocks(array(jnp.int32, s, p), array(jnp.int32, s, g, r), array(jnp.int32, t))
  # In the order of the fields of Rows.
  ints, floats = [array(jnp.int32, t)] * 6, [array(jnp.float32, t)] * 3
  scores = (array(jnp.float32, t) if scored else None for scored in (old, reference))
  return Rows(*ints, *floats, *scores, layout)


def update_calls(
  config, state: update.TrainState, tx, shapes: Sequence[RowShape], always_score: bool = False
) -> list[Call]:
  """The programs of the update.

  Args:
    config: of the run.
    state: the shapes of its arrays, from sharding.on_mesh.
    tx: the optimiser.
    shapes: of the micro-batches.
    always_score: name the log-prob pass even if the config does not need it.
  """
  loss = update.loss_of(config)
  several = config.method != "sft" and config.algorithm.steps_per_batch > 1
  kl = config.method != "sft" and config.algorithm.kl > 0
  trained, frozen = split(state.model)
  weights = on_mesh(jax.eval_shape(lambda trained: update.step_weights(trained, loss), trained))
  grads = on_mesh(jax.eval_shape(update.zeros, weights))
  calls = [
    Call("zeros", update.zeros, (weights,)),
    Call("apply", update.apply, (tx, trained, state.moments, grads)),
  ]
  if update.uses_copy(trained, loss):
    dtype = state.model.config.dtype
    calls.append(Call("cast", by_layer.cast_layers, (trained.layers,), {"dtype": dtype}))
  for shape in shapes:
    args, how = (grads, weights, rows_of(shape, several, kl)), {"loss": loss, "frozen": frozen}
    calls.append(Call("accumulate", update.accumulate, args, how))
  # Responses are scored for the loss, held-out targets for supervised runs, both in one shape.
  if always_score or several or kl or config.method == "sft":
    args = state.model, rows_of(packing.roomiest(shapes))
    calls.append(Call("score", update.logprobs_of, args, {"loss": loss}))
  return calls


class Ahead:
  """Compiles calls side by side in threads.

  The threads are daemons: unlike an executor's they do not hold up a run that is stopped.
  """

  def __init__(self, calls: Sequence[Call]):
    # XLA compiles outside the GIL, so one thread for each core compiles in parallel.
    self._begin = time.monotonic()
    self._waiting = queue.SimpleQueue()
    self._futures = []
    for call in calls:
      self._futures.append(concurrent.futures.Future())
      self._waiting.put((call, self._futures[-1]))
    work = keep_mesh(self._work)  # the mesh that is set is a property of the thread
    for _ in range(min(len(calls), os.cpu_count() or 1)):
      threading.Thread(target=work, name="compile", daemon=True).start()

  def _work(self) -> None:
    while True:
      try:
        call, future = self._waiting.get_nowait()
      except queue.Empty:
        return
      try:
        future.set_result(call.function.lower(*call.args, **call.kwargs).compile())
      except BaseException as error:  # `wait` raises it
        future.set_exception(error)

  def wait(self, say: Callable[[str], None]) -> None:
    """Returns when all are compiled; reports progress every SECONDS.

    Raises what a compilation raised, such as jax.errors.JaxRuntimeError for lack of memory.
    """
    left = self._futures
    while True:
      _, left = concurrent.futures.wait(left, timeout=SECONDS)
      if not left:
        break
      done, seconds = len(self._futures) - len(left), time.monotonic() - self._begin
      say(f"compiling {len(self._futures)} programs, {done} done, {seconds:.0f} s")
    for future in self._futures:
      future.result()  # raises


class Counter:
  """Counts what XLA compiles in this process, and what it loads from the persistent cache."""

  def __init__(self):
    self._lock = threading.Lock()
    self._events, self._loaded, self._seconds = 0, 0, 0.0
    jax.monitoring.register_event_duration_secs_listener(self._on_duration)
    jax.monitoring.register_event_listener(self._on_event)

  def _on_duration(self, event: str, seconds: float, **_) -> None:
    if event == "/jax/core/compile/backend_compile_duration":  # cache hits included
      with self._lock:
        self._events += 1
        self._seconds += seconds

  def _on_event(self, event: str, **_) -> None:
    if event == "/jax/compilation_cache/cache_hits":
      with self._lock:
        self._loaded += 1

  def take(self) -> dict[str, float]:
    """programs_compiled, programs_loaded (from the cache) and seconds_compile since the last call.

    Programs that are compiled side by side add up their seconds.
    """
    with self._lock:  # listeners are called in the threads that compile
      found = {
        "programs_compiled": self._events - self._loaded,
        "programs_loaded": self._loaded,
        "seconds_compile": self._seconds,
      }
      self._events, self._loaded, self._seconds = 0, 0, 0.0
    return found

  def close(self) -> None:
    jax.monitoring.unregister_event_duration_listener(self._on_duration)
    jax.monitoring.unregister_event_listener(self._on_event)


def use_cache() -> str | None:
  """Keeps compiled programs in the user's cache folder, at most CACHE_BYTES.

  A folder that the user has chosen (JAX_COMPILATION_CACHE_DIR) is left as it is. Returns a line to
  show when the folder is made, else None.
  """
  if jax.config.jax_compilation_cache_dir:
    return None
  root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
  folder, line = root / "srl_jax" / "programs", None
  if not folder.is_dir():
    try:
      folder.mkdir(parents=True)
    except OSError:  # a home that cannot be written to; programs are compiled again then
      return None
    line = (
      f"compiled programs are kept in {folder}, at most {CACHE_BYTES >> 30} GiB; "
      "JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false none"
    )
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
  # Small programs too: a run has many, and together they take seconds at every start.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
  return line


def program_bytes(compiled) -> int:
  """The most bytes of a device that are in use while a compiled program runs."""
  memory = compiled.memory_analysis()
  # Results in donated buffers (alias) are among the arguments already.
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  together = memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
  # The compilers' own peak leaves out the gaps between live arrays.
  return max(memory.peak_memory_in_bytes, together) + memory.generated_code_size_in_bytes
