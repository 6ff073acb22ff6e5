"""Collectives over the hosts of a run. With one process everything here is an identity.

All processes run the same program and take the same decisions. Arrays are global and JAX moves
them; host data (rollouts, scores, a signal) goes as JSON through the key-value store of JAX's
coordination service. It does not go over the devices, because a batch that is prefetched is
exchanged from a thread, and device programs of two threads would start in a different order on
each host.
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

HEARTBEAT_SECONDS = 30  # of silence, after which a process is dead and all others end
SHUTDOWN_SECONDS = 30  # that a process which ends waits for the others
_turns = itertools.count()


def initialize() -> None:
  """Joins the processes of this run, if the environment names several.

  It names them by JAX_COORDINATOR_ADDRESS (host:port of process 0) with JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, or by the variables that SLURM, Open MPI or a TPU pod set for every process;
  jax.distributed.initialize detects what is missing. Call it before anything touches a device.

  Raises UserError when the environment is incomplete.
  """
  if not _several(os.environ):
    return
  given = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
  try:
    numbers = {}
    for key, name in given.items():
      if name in os.environ:
        numbers[key] = int(os.environ[name])
    # The service installs a handler that would replace ours for SIGTERM.
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
  """jax.devices(); UserError where JAX_PLATFORMS names a platform that JAX cannot use here."""
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
  """Whether this is one of several processes of a run; see `initialize`."""
  count = lambda name: int(environment.get(name, 1))
  workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
  return (
    "JAX_COORDINATOR_ADDRESS" in environment
    # A batch script before srun has SLURM_NTASKS too, but no list of the step's nodes.
    or ("SLURM_STEP_NODELIST" in environment and count("SLURM_NTASKS") > 1)
    or count("OMPI_COMM_WORLD_SIZE") > 1
    or "," in workers
  )


def is_writer() -> bool:
  """Whether this process writes the run's files and prints (process 0)."""
  return jax.process_index() == 0


def local_part(items: Sequence) -> Sequence:
  """This process's part of items that all processes have."""
  return items[jax.process_index() :: jax.process_count()]


def all_gather_json(value) -> list:
  """The values (JSON) of all processes, in their order; all must call in the same order."""
  if jax.process_count() == 1:
    return [value]
  from jax._src import distributed  # not public in JAX; orbax takes the client from here too

  client, turn = distributed.global_state.client, next(_turns)
  key = lambda turn, process: f"srl_jax/{turn}/{process}"
  packed = zlib.compress(json.dumps(value).encode(), level=1)
  client.key_value_set_bytes(key(turn, jax.process_index()), packed)
  values = [_wait_for(client, key(turn, process)) for process in range(jax.process_count())]
  # All processes are in this turn, so all have read the values of the one before.
  if turn:
    client.key_value_delete(key(turn - 1, jax.process_index()))
  return [json.loads(zlib.decompress(packed)) for packed in values]


def _wait_for(client, key: str) -> bytes:
  """The value of the key; waits a second at a time, so that Python can handle signals."""
  while True:
    try:
      return client.blocking_key_value_get_bytes(key, 1000)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise


def broadcast(value):
  """Process 0's value (JSON), so that what depends on its clock or its files is the same on all."""
  return all_gather_json(value if is_writer() else None)[0]


def barrier() -> None:
  """Returns when all processes have called it."""
  all_gather_json(None)


def sum_counts(counts: dict[str, float]) -> dict[str, float]:
  """The sums of all processes' counts."""
  sums: dict[str, float] = {}
  for part in all_gather_json(counts):
    for name, count in part.items():
      sums[name] = sums.get(name, 0) + count
  return sums


def all_gather_lists(entries: list, error: Exception | None = None) -> list:
  """The lists (JSON) of all processes as one list, in the order of the processes.

  Args:
    entries: this process's list.
    error: what ended this process's part, an EngineError or Stopped, or None. Every process then
      raises it, so that all of them leave the same work undone.
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
  """Ends this process at once if it is one of several: an ordinary exit would wait for the others.

  JAX's heartbeat aborts the other processes within HEARTBEAT_SECONDS.
  """
  if jax.process_count() == 1:
    return
  traceback.print_exception(error)
  reason = str(error).strip().splitlines()[0]
  print(
    f"error: process {jax.process_index()} of {jax.process_count()} ends: {reason}. Most often "
    "another process of the run has died, and its log has the reason. What was saved is whole: "
    "start all of them again with the same command to continue",
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)
