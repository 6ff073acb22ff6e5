"""One process at a time writes to a folder."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import TextIO

# A file server notices only after its lease, 90 s as a rule, that a host has died with its locks.
LEASE_SECONDS = 120.0


@contextlib.contextmanager
def alone_in(folder: pathlib.Path) -> Iterator[None]:
  """Makes `folder` if need be and keeps other processes that ask for it out of it until the end.

  The lock lies on FOLDER/.lock and goes with the process, however that ends. On a file system that
  has no locks a line on stderr says so, and nobody is kept out.

  Raises ValueError, which says who is there, at once if that process runs on this host; one of
  another host, which may have died, is waited for, LEASE_SECONDS at most.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / ".lock").open("a+", encoding="utf-8") as file:
    deadline = time.monotonic() + LEASE_SECONDS
    while not _lock(file, folder):
      file.seek(0)
      holder = file.read().strip()
      here = not holder or holder.endswith(f" on {socket.gethostname()}")
      if here or time.monotonic() > deadline:
        raise ValueError(
          f"{folder}: {holder or 'another process'} works in it; wait for its end, stop it, or give"
          " another folder"
        )
      time.sleep(1)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    yield


def _lock(file: TextIO, folder: pathlib.Path) -> bool:
  """Whether the file is now locked, or cannot be; False: somebody else has it."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
      raise
    print(
      f"{folder}: its file system has no locks ({error.strerror}); take care that nothing else"
      " writes there",
      file=sys.stderr,
    )
  return True
