"""Output folders: one writer at a time, complete files only, one set of settings."""

import contextlib
import errno
import json
import os
import pathlib
import socket
import stat
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TextIO

import filelock

from srl_jax.errors import UserError

# A file server releases the locks of a dead host only when its lease ends, usually after 90 s.
LEASE_SECONDS = 120.0
FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk or the user's quota is full
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # the file system does not support locks


# ---------------------------------------------------------------------------------- one writer


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Creates `folder` if needed and holds its lock, FOLDER/.lock, until the end of the block.

  The operating system releases the lock however the process ends. On a file system without locks a
  warning is printed to stderr and nothing is locked.

  Raises:
    UserError: another process holds the lock; the message names it. It is raised at once if that
      process runs on this host. A holder on another host may be dead, so its lock is waited for, at
      most LEASE_SECONDS.
  """
  folder.mkdir(parents=True, exist_ok=True)
  lock, holder = _file_lock(folder / ".lock"), folder / ".lock_holder"
  try:
    _acquire(lock, holder, folder)
  except (NotImplementedError, OSError) as error:
    if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
      raise
    print(
      f"{folder}: its file system has no locks ({error}); make sure that nothing else writes there",
      file=sys.stderr,
    )
  try:
    # For the message of another process; the lock itself does not depend on this file.
    write_text(holder, f"process {os.getpid()} on {socket.gethostname()}\n")
    yield
  finally:
    lock.release()


def _file_lock(file: pathlib.Path, mode: int = -1) -> filelock.BaseFileLock:
  """Returns a lock of the operating system."""
  # filelock's fallback for file systems without locks would remain after a process is killed.
  return filelock.FileLock(file, mode=mode, fallback_to_soft=False)


def try_lock(file: pathlib.Path) -> filelock.BaseFileLock | None:
  """Returns the acquired lock of a file, to be released by the caller; None if it is taken.

  Also None for anything but a regular file of this user: opening a link could truncate its target,
  and opening a fifo could block. `file` must be in a folder that no other user can write to
  (`is_private`), so that it cannot be replaced between the check and the opening.
  """
  try:
    found = file.lstat()
  except FileNotFoundError:
    pass
  else:
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
      return None
  lock = _file_lock(file, mode=0o600)
  try:
    lock.acquire(timeout=0)
  except filelock.Timeout:
    return None
  return lock


def is_private(folder: pathlib.Path) -> bool:
  """Returns whether it is a folder (not a link to one) to which only this user can write."""
  try:
    found = folder.lstat()
  except FileNotFoundError:
    return False
  others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
  return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not others


def _acquire(lock: filelock.FileLock, holder: pathlib.Path, folder: pathlib.Path) -> None:
  """Acquires the lock; UserError if its holder is on this host, or does not release it in time."""
  deadline = time.monotonic() + LEASE_SECONDS
  while True:
    try:
      return lock.acquire(timeout=0)
    except filelock.Timeout as error:
      name = holder.read_text("utf-8").strip() if holder.exists() else ""
      is_local = not name or name.endswith(f" on {socket.gethostname()}")
      if is_local or time.monotonic() > deadline:
        raise UserError(
          f"{folder} is in use by {name or 'another process'}: wait until it ends, stop it, or give"
          " another folder"
        ) from error
      time.sleep(1)


# ---------------------------------------------------------------------------------- whole files


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[TextIO]:
  """Yields a text file that replaces `path` if the block ends without an error."""
  partial = path.with_suffix(".partial")
  with partial.open("w", encoding="utf-8") as file:
    yield file
    file.flush()
    os.fsync(file.fileno())  # otherwise the file could be empty after a power failure
  # Renaming is atomic: readers see either the old or the new file.
  os.replace(partial, path)


def absolute(name: str) -> str:
  """Returns the absolute path of a folder, or "" if `name` is no folder here, as a hub's name."""
  folder = pathlib.Path(name).expanduser()
  return str(folder.resolve()) if folder.is_dir() else ""


def is_disk_full(error: BaseException) -> bool:
  """Returns whether an error, or one of its causes, is that of a full disk or quota."""
  while error:
    if isinstance(error, OSError) and error.errno in FULL:
      return True
    if any(
      os.strerror(code) in str(error) for code in FULL
    ):  # C++ libraries raise no OSError, but their messages contain the system's text
      return True
    error = error.__cause__ or error.__context__
  return False


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file atomically: at any time it has either the old or the new contents."""
  with replacing(path) as file:
    file.write(text)


def write_json(path: pathlib.Path, data: Any) -> None:
  """Writes JSON atomically, see `write_text`."""
  write_text(path, json.dumps(data, indent=1) + "\n")


def cut_to_whole_lines(path: pathlib.Path) -> bool:
  """Removes an incomplete last line, left by a killed process; returns whether lines remain."""
  if not path.exists():
    return False
  data = path.read_bytes()
  whole = data.rfind(b"\n") + 1  # bytes up to the end of the last complete line
  if whole < len(data):
    os.truncate(path, whole)
  return whole > 0


# ---------------------------------------------------------------------------------- one owner


def flatten(settings: Mapping) -> dict[str, Any]:
  """Returns {"a.b": value} of nested mappings (a ConfigDict or dicts); tuples become lists."""
  flat = {}
  for key, value in settings.items():
    if hasattr(value, "items"):
      flat |= {f"{key}.{inner}": x for inner, x in flatten(value).items()}
    else:
      flat[key] = list(value) if isinstance(value, tuple) else value
  return flat


def check_same_settings(
  folder: pathlib.Path,
  before: Mapping[str, Any],
  now: Mapping[str, Any],
  *,
  holds: str,
  flag: str,
  free: Collection[str] = (),
) -> None:
  """Raises UserError, with the differences, unless `folder` was written with the same settings.

  Args:
    folder: for the message.
    before: flat settings of the folder.
    now: flat settings of this command.
    holds: the contents of the folder, for the message: "a run of another config".
    flag: the flag that selects another folder: "--workdir".
    free: keys that may differ.
  """
  differ = []
  for key in {**before, **now}:
    if key not in free and before.get(key) != now.get(key):
      was, is_ = _shortened(before.get(key), now.get(key))
      differ.append(f"{key} was {was}, is {is_}")
  if differ:
    raise UserError(
      f"{folder} holds {holds}: {'; '.join(differ)}. Give another {flag}, or set these back to"
      " continue"
    )


def _shortened(was: Any, is_: Any) -> tuple[str, str]:
  """Returns two different values as text; of long ones the part around the first difference."""
  was, is_ = repr(was), repr(is_)
  if max(len(was), len(is_)) < 160:
    return was, is_
  start = max(0, len(os.path.commonprefix([was, is_])) - 30)  # 30 characters before it
  cut = lambda text: ("... " if start else "") + text[start : start + 100]
  return cut(was), cut(is_)
