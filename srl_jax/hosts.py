"""Collectives over the hosts of a run. With one process everything here is an identity.

All processes run the same program and take the same decisions. Arrays are global and JAX transfers
them; host data (the numbers of rollouts, token ids, a signal) is exchanged through the key-value
store of JAX's coordination service. It does not use the devices, because a prefetched batch is
exchanged from a thread, and device programs of two threads would be launched in a different order
on each host, which deadlocks.
"""

import itertools
import json
import os
import sys
import traceback
import zlib
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from srl_jax.errors import EngineError, Stopped, UserError

HEARTBEAT_SECONDS = 30  # without a heartbeat a process counts as dead, and all others are aborted
SHUTDOWN_SECONDS = 30  # a process that exits waits this long for the others
CHUNK_BYTES = 1 << 20  # of a value in the store
CHUNK_MILLISECONDS = 600_000  # a chunk that takes longer to arrive is an error
# One number for each collective, and for each exchange: the keys of the store must be unique.
_turns, _exchanges = itertools.count(), itertools.count()


def initialize() -> None:
  """Joins the processes of this run, if the environment describes several.

  The environment describes them by JAX_COORDINATOR_ADDRESS (host:port of process 0) with
  JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by the variables that SLURM, Open MPI or a TPU pod sets
  for every process; jax.distributed.initialize detects what is missing. It must be called before
  anything uses a device.

  Raises:
    UserError: the environment is incomplete.
  """
  if not _several(os.environ):
    return
  given = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
  try:
    numbers = {}
    for key, name in given.items():
      if name in os.environ:
        numbers[key] = int(os.environ[name])
    # JAX's preemption service would replace our handler of SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
      **numbers,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
  except ValueError as error:
    raise UserError(
      f"the environment names several processes, but lacks what is needed to join them ({error}); "
      f"set JAX_COORDINATOR_ADDRESS=host:port, {' and '.join(given.values())} in each"
    ) from error


def devices() -> list:
  """Returns jax.devices(); UserError if JAX_PLATFORMS names a platform that is not available."""
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:  # JAX raises either
    reason = (str(error).strip().splitlines() or ["its plugin is not installed"])[0]
    raise UserError(
      f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}: JAX cannot use it ({reason});"
      " install JAX for your devices (pip install 'jax[cuda13]' or 'jax[tpu]'), or unset the"
      " variable"
    ) from error


def _several(environment) -> bool:
  """Returns whether this is one of several processes of a run; see `initialize`."""
  count = lambda name: int(environment.get(name, 1))
  workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
  return (
    "JAX_COORDINATOR_ADDRESS" in environment
    # A batch script outside srun has SLURM_NTASKS too, but no list of the step's nodes.
    or ("SLURM_STEP_NODELIST" in environment and count("SLURM_NTASKS") > 1)
    or count("OMPI_COMM_WORLD_SIZE") > 1
    or "," in workers
  )


def is_writer() -> bool:
  """Returns whether this process writes the run's files and prints (process 0)."""
  return jax.process_index() == 0


def local_part(items: Sequence) -> Sequence:
  """Returns this process's part of items that all processes have: every process_count-th item."""
  return items[jax.process_index() :: jax.process_count()]


def all_gather_json(value) -> list:
  """Returns the values (JSON) of all processes, in process order; a collective.

  All processes must call the collectives of this module in the same order.
  """
  if jax.process_count() == 1:
    return [value]
  packed = zlib.compress(json.dumps(value).encode(), level=1)
  return [json.loads(zlib.decompress(packed)) for packed in _all_gather_bytes(packed)]


def _all_gather_bytes(data: bytes) -> list[bytes]:
  """Returns the data of all processes, of which there are several, in process order; a collective.

  Process 0 reads the values and writes them as one, so that the store has three operations for each
  process. If each process read each value, their number would grow with the square.
  """
  client, turn = _client(), next(_turns)
  key = lambda part: f"srl_jax/all/{turn}/{part}"
  if not is_writer():
    _set(client, key(jax.process_index()), data)
    whole = _wait_for(client, key("whole"))
  else:
    parts = [data, *(_wait_for(client, key(i)) for i in range(1, jax.process_count()))]
    # All have set a value of this turn, so all have finished the turn before, and its keys can be
    # deleted. Without this the store would grow with every step.
    if turn:
      client.key_value_delete(f"srl_jax/all/{turn - 1}")  # and all keys below it
    sizes = np.array(list(map(len, parts)), np.int64)
    whole = sizes.tobytes() + b"".join(parts)
    _set(client, key("whole"), whole)
  # The sizes of the parts, 8 bytes each, and the parts.
  sizes = np.frombuffer(whole, np.int64, jax.process_count())
  ends = sizes.nbytes + sizes.cumsum()
  return [whole[end - size : end] for size, end in zip(sizes, ends)]


def _client():
  from jax._src import distributed  # not public in JAX; orbax takes the client from here too

  return distributed.global_state.client


def _set(client, key: str, data: bytes) -> None:
  """Sets the value of a key, of which `_wait_for` gets any size; chunks are keys below it."""
  chunks = [data[begin : begin + CHUNK_BYTES] for begin in range(0, len(data), CHUNK_BYTES)]
  inline = chunks.pop() if len(chunks) == 1 else b""
  for number, chunk in enumerate(chunks):
    client.key_value_set_bytes(f"{key}/{number}", chunk)
  # Last, because a process that finds this key gets the chunks at once.
  client.key_value_set_bytes(key, f"{len(chunks)} ".encode() + inline)


def _wait_for(client, key: str) -> bytes:
  """Returns the value of a key; waits one second at a time, so that Python can handle signals.

  That second includes the transfer of the value, hence the chunks.
  """
  while True:
    try:
      head = client.blocking_key_value_get_bytes(key, 1000)
      break
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
  count, _, inline = head.partition(b" ")
  get = lambda number: client.blocking_key_value_get_bytes(f"{key}/{number}", CHUNK_MILLISECONDS)
  return inline + b"".join(map(get, range(int(count))))


def broadcast(value):
  """Returns process 0's value (JSON); for decisions that depend on its clock or its files."""
  return all_gather_json(value if is_writer() else None)[0]


def barrier() -> None:
  """Returns when all processes have called it."""
  all_gather_json(None)


def sum_counts(counts: dict[str, float]) -> dict[str, float]:
  """Returns the sums of all processes' counts, {name: sum}; a collective."""
  sums: dict[str, float] = {}
  for part in all_gather_json(counts):
    for name, count in part.items():
      sums[name] = sums.get(name, 0) + count
  return sums


def all_gather_lists(entries: list, error: Exception | None = None) -> list:
  """Returns the lists (JSON) of all processes as one list, in process order; a collective.

  Args:
    entries: this process's list.
    error: the EngineError or Stopped that ended this process's part, or None.

  Raises:
    EngineError, Stopped: one process passed an error; as `all_gather_rows`.
  """
  if jax.process_count() == 1 and error is None:
    return entries  # not as JSON
  parts = _all_gather_or_raise(zlib.compress(json.dumps(entries).encode(), level=1), error)
  return sum((json.loads(zlib.decompress(part)) for part in parts), [])


def all_gather_rows(rows: np.ndarray, error: Exception | None = None) -> list[np.ndarray]:
  """Returns the arrays of all processes, in process order and read-only; a collective.

  Args:
    rows: this process's array of any length, one-dimensional and of the same type on all.
    error: the EngineError or Stopped that ended this process's part, or None.

  Raises:
    EngineError, Stopped: one process passed an error. All of them raise it, so that none continues
      with a different state.
  """
  return [np.frombuffer(part, rows.dtype) for part in _all_gather_or_raise(rows.tobytes(), error)]


def _all_gather_or_raise(data: bytes, error: Exception | None) -> list[bytes]:
  """As _all_gather_bytes, but raises the first error of a process on all of them."""
  if jax.process_count() == 1:
    if error is not None:
      raise error
    return [data]
  named = error and ["Stopped" if isinstance(error, Stopped) else "EngineError", str(error)]
  # JSON has no byte 0, so the first one ends it.
  parts = _all_gather_bytes(json.dumps(named).encode() + b"\0" + data)
  kinds, parts_of_data = {"EngineError": EngineError, "Stopped": Stopped}, []
  for part in parts:
    named, _, data = part.partition(b"\0")
    if found := json.loads(named):
      raise kinds[found[0]](found[1])
    parts_of_data.append(data)
  return parts_of_data


def exchange(parcels: Mapping[int, bytes], senders: Iterable[int]) -> dict[int, bytes]:
  """Sends bytes to some processes and receives from others, through the store of process 0.

  A collective that is counted separately: another thread may use the other ones meanwhile.

  Args:
    parcels: {process: what it receives from this one}.
    senders: the processes that have this one among their parcels; it waits for each of them.

  Returns {sender: its parcel}.
  """
  if jax.process_count() == 1:
    return {}
  client, turn, me = _client(), next(_exchanges), jax.process_index()
  key = lambda sender, receiver: f"srl_jax/exchange/{turn}/{sender}/{receiver}"
  for receiver, parcel in parcels.items():
    _set(client, key(me, receiver), parcel)
  arrived = {}
  for sender in senders:
    arrived[sender] = _wait_for(client, key(sender, me))
    client.key_value_delete(key(sender, me))  # no other process reads it
  return arrived


def abort(error: Exception) -> None:
  """Ends this process at once if it is one of several; a normal exit would wait for the others.

  JAX's heartbeat aborts the other processes within HEARTBEAT_SECONDS.
  """
  if jax.process_count() == 1:
    return
  traceback.print_exception(error)
  reason = str(error).strip().splitlines()[0]
  print(
    f"error: process {jax.process_index()} of {jax.process_count()} ends: {reason}. Usually "
    "another process of the run has died, and its log has the reason. Saved files are complete: "
    "start all of them again with the same command to continue",
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)
