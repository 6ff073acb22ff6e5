"""The files of new weights: written once for each file system that servers read them from.

The processes of a run find out which of them share the root. Those that do divide the tensors by
bytes and write into one folder; a process that shares it with no other one writes all of them.
While a thread writes one batch of tensors, the next one is cast, gathered and copied to the host.
"""

import collections
import contextlib
import pathlib
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from srl_jax import folders, hosts
from srl_jax.errors import EngineError, UserError
from srl_jax.policy import peft_files
from srl_jax.policy.hf_tensors import Stack, hf_batches
from srl_jax.policy.model import Qwen2

# Of tensors that are cast and gathered by one program. On a CPU larger arrays are slower: the
# allocator gives their pages back instead of using them for the next batch.
BATCH_BYTES = 16 << 20
# Of tensors on the host that are not written yet; at least one batch is written and one copied.
AHEAD_BYTES = 256 << 20
WHOLE = "policy"  # the name that servers give their own weights


class WeightsFolder:
  """A run's folder in the root, with the files of the newest weights; gone after `close`.

  With several processes all must make one, and `write` together. Those that see each other's
  folders in their roots keep one of these folders for all of them.

  Args:
    root: shared by the run and its servers (their SRL_WEIGHTS_ROOT): /dev/shm on one machine, a
      folder on a cluster file system otherwise. Folders that killed runs left there are removed.
    servers: whether this process has servers. Processes without any help to write where they share
      the root with one that has; they need no root otherwise.

  Raises UserError, in all processes, when the root of one with servers cannot be written to.
  """

  def __init__(self, root: str, servers: bool = True):
    self.root, self.path, error = pathlib.Path(root).resolve(), None, None
    self._lock, self._remove = None, lambda: None
    try:
      self._create()
    except (OSError, NotImplementedError) as raised:  # the second: a file system without locks
      self.close()
      self.path = None
      reason = getattr(raised, "strerror", None) or raised
      error = (
        f"rollout.weights_root: {root!r} cannot be used for weights ({reason}); give a "
        "folder that this run and its servers share, with room for the weights twice"
      )
    found = hosts.all_gather_json(
      {"name": self.path and self.path.name, "servers": servers, "error": error}
    )
    for process, part in enumerate(found):
      if part["servers"] and part["error"]:
        self.close()
        where = f"process {process}: " if len(found) > 1 else ""
        raise UserError(where + part["error"])
    self._share(found)

  def _create(self) -> None:
    """Makes a folder that no other user can write to."""
    self._sweep()
    # Mode 0700 and a name that cannot be guessed: no other user can put files there first.
    self.path = pathlib.Path(tempfile.mkdtemp(prefix="srl_jax-", dir=self.root))
    # Also when the run ends without `close`.
    self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
    self._lock = folders.try_lock(self.path / "lock")

  def _sweep(self) -> None:
    """Removes what killed runs of this user left; a root such as /dev/shm has many users."""
    for path in self.root.glob("srl_jax-*"):
      with contextlib.suppress(OSError):  # such as one that another run has just removed
        _remove_abandoned(path)

  def _share(self, found: Sequence[dict]) -> None:
    """Keeps one folder for all processes that see each other's; `found` is of all processes."""
    names = [part["name"] for part in found]
    me, owner = jax.process_index(), -1
    if self.path:
      # The folder of another process is here only if both have the same file system as their root.
      owner = min((i for i, name in enumerate(names) if self._sees(name)), default=me)
    owners = hosts.all_gather_json(owner)  # afterwards no process looks for folders any more
    members = [me] if owner < 0 else [i for i, other in enumerate(owners) if other == owner]
    self._member, self._members = members.index(me), len(members)
    self._has_readers = self.path is not None and any(found[i]["servers"] for i in members)
    if self._member:
      self.close()
      self.path = self.root / names[members[0]]

  def _sees(self, name: str | None) -> bool:
    """Whether the folder of a process is in this one's root; False where that cannot be read."""
    with contextlib.suppress(OSError):
      return name is not None and folders.is_private(self.root / name)
    return False

  def write(self, model: Qwen2, version: int, dtype) -> str:
    """Writes the weights in `dtype`.

    Of a policy with adapters it writes those, in float32, as peft does. All processes must call it;
    it returns when all have written their parts.

    Returns the folder's name relative to the root, or "" if no server reads from this root.
    Raises EngineError in all processes when one cannot write; nothing of the weights is left then.
    """
    target = self.path / f"version-{version}" if self._has_readers else None
    try:
      raise_in_all(self._attempt(version, lambda: self._begin(target)))
      raise_in_all(self._attempt(version, lambda: self._write(model, dtype, target)))
    except BaseException:
      if target:
        shutil.rmtree(target, ignore_errors=True)
      raise
    return str(target.relative_to(self.root)) if target else ""

  def _begin(self, target: pathlib.Path | None) -> None:
    """Makes an empty folder, before any process writes into it."""
    if target and self._member == 0:
      shutil.rmtree(target, ignore_errors=True)
      target.mkdir()

  def _write(self, model: Qwen2, dtype, target: pathlib.Path | None) -> None:
    if model.lora is None:
      batches = hf_batches(model.config, model, dtype, BATCH_BYTES)
      write_batches(divided(batches, self._member, self._members), target, f"{self._member:05}")
      return
    # All of them before the first is written, because the other processes take part in the gathers.
    adapters = list(peft_files.tensors(model.lora))
    if target and self._member == 0:
      peft_files.write(target, adapters, model.lora.shape, {"model": WHOLE, "sha256": {}})

  def _attempt(self, version: int, function) -> EngineError | None:
    """Calls the function; the error with which it could not write, or None."""
    try:
      function()
    except (OSError, SafetensorError) as raised:
      free = ""
      with contextlib.suppress(OSError):  # the root may have been unmounted
        free = f" ({shutil.disk_usage(self.root).free / 1e9:.1f} GB free)"
      error = EngineError(
        f"weights of step {version} could not be written to {self.root}{free}: "
        f"{raised}. Make room for the weights twice, or set rollout.weights_root to another folder"
      )
      error.__cause__ = raised
      return error
    return None

  def keep_only(self, folder: str) -> None:
    """Removes all weights but those of `folder`, a name that `write` gave."""
    if self._member == 0 and self.path:
      for path in self.path.glob("version-*"):
        if path != self.root / folder:
          shutil.rmtree(path, ignore_errors=True)

  def close(self) -> None:
    """Removes the folder, unless it is another process's."""
    self._remove()
    if self._lock:
      self._lock.release()


def raise_in_all(error: Exception | None) -> None:
  """Raises `error`, and EngineError in the processes without one while another process has one."""
  failed = hosts.all_gather_json(error is not None)
  if error:
    raise error
  if any(failed):
    raise EngineError(
      f"process {failed.index(True)} could not push its weights; its output has the reason"
    )


def _remove_abandoned(path: pathlib.Path) -> None:
  """Removes a folder of this user if no run holds its lock; leaves anything else alone."""
  # A young one may belong to a run that has not locked it yet.
  if not folders.is_private(path) or time.time() - path.lstat().st_mtime <= 60:
    return
  lock = folders.try_lock(path / "lock")
  if lock:
    shutil.rmtree(path, ignore_errors=True)
    lock.release()


# ---------------------------------------------------------------------------------- batches


def divided(
  batches: Iterable[Sequence[Stack]], part: int, parts: int
) -> Iterator[tuple[Sequence[Stack], list[Stack]]]:
  """Yields (the stacks of a batch, those among them that process `part` of `parts` writes).

  Each stack goes to the process with the fewest bytes so far, so all processes agree without a
  message, and none has more than the average and the largest stack.
  """
  loads = [0] * parts
  for stacks in batches:
    own = []
    for stack in sorted(stacks, key=lambda stack: -stack.array.nbytes):
      least = loads.index(min(loads))
      loads[least] += stack.array.nbytes
      if least == part:
        own.append(stack)
    yield stacks, own


def write_batches(
  batches: Iterable[tuple[Sequence[Stack], list[Stack]]], target: pathlib.Path | None, prefix: str
) -> None:
  """Writes the own stacks of each batch of `divided` into a file TARGET/PREFIX-NUMBER.safetensors.

  Without a target it only takes part in the gathers. Raises the OSError or SafetensorError of the
  writing after the last batch: the other processes wait for this one's part in each.
  """
  error, waiting = None, collections.deque()  # of (file that is being written, bytes)
  with ThreadPoolExecutor(1) as writer:
    for number, (stacks, own) in enumerate(batches):
      if error or not target or not own:
        # The device has this batch and the next one, which is dispatched afterwards.
        jax.block_until_ready([stack.array for stack in stacks])
        continue
      tensors = _on_host(own)  # while the batches before are written
      size = sum(tensor.nbytes for tensor in tensors.values())
      while waiting and not error and size + sum(other for _, other in waiting) > AHEAD_BYTES:
        error = waiting.popleft()[0].exception()
      file = target / f"{prefix}-{number:05}.safetensors"
      waiting.append((writer.submit(save_file, tensors, file), size))
  for writing, _ in waiting:
    error = error or writing.exception()
  if error:
    raise error


def _on_host(stacks: Sequence[Stack]) -> dict[str, np.ndarray]:
  """{name: tensor}; the stacks are copied from this process's devices in turn, side by side."""
  copies = []
  for turn, stack in enumerate(stacks):
    replicas = stack.array.addressable_shards
    copies.append(replicas[turn % len(replicas)].data)
    copies[-1].copy_to_host_async()
  tensors = {}
  for stack, copy in zip(stacks, copies):
    tensors |= zip(stack.names, np.asarray(copy) if stack.by_layer else [np.asarray(copy)])
  return tensors
