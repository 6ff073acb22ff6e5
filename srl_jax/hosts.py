"""Collectives over the hosts of a run. With one process everything here is an identity.

All processes run the same program and take the same decisions. Arrays are global and JAX transfers
them; host data (rollouts, scores, a signal) is exchanged as JSON through the key-value store of
JAX's coordination service. It does not use the devices, because a prefetched batch is exchanged
from a thread, and device programs of two threads would be launched in a different order on each
host, which deadlocks.
"""

import itertools
import json
import os
import sys
import traceback
import zlib
from collections.abc import Sequence

import jax

from srl_jax.errors import EngineError, Stopped, UserError

HEARTBEAT_SECONDS = 30  # without a heartbeat a process counts as dead, and all others are aborted
SHUTDOWN_SECONDS = 30  # a process that exits waits this long for the others
_turns = itertools.count()  # one per collective: the keys of the store must be unique


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
  from jax._src import distributed  # not public in JAX; orbax takes the client from here too

  client, turn = distributed.global_state.client, next(_turns)
  key = lambda turn, process: f"srl_jax/{turn}/{process}"
  packed = zlib.compress(json.dumps(value).encode(), level=1)
  client.key_value_set_bytes(key(turn, jax.process_index()), packed)
  values = [_wait_for(client, key(turn, process)) for process in range(jax.process_count())]
  # All processes have set a value of this turn, so all have finished the turn before, and its keys
  # can be deleted. Without this the store would grow with every step.
  if turn:
    client.key_value_delete(key(turn - 1, jax.process_index()))
  return [json.loads(zlib.decompress(packed)) for packed in values]


def _wait_for(client, key: str) -> bytes:
  """Returns the value of a key; waits one second at a time, so that Python can handle signals."""
  while True:
    try:
      return client.blocking_key_value_get_bytes(key, 1000)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise


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
    EngineError, Stopped: one process passed an error. All of them raise it, so that none continues
      with a different state.
  """
  part = {"entries": entries}
  if error is not None:
    kind = "Stopped" if isinstance(error, Stopped) else "EngineError"
    part = {"kind": kind, "message": str(error)}
  parts = all_gather_json(part)
  kinds = {"EngineError": EngineError, "Stopped": Stopped}
  for part in parts:
    if "kind" in part:
      raise kinds[part["kind"]](part["message"])
  entries_of_all = []
  for part in parts:
    entries_of_all += part["entries"]
  return entries_of_all


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
