"""Child processes that compute rewards, with limits of time and memory enforced by the kernel.

multiprocessing and concurrent.futures do not fit: their children import the parent's __main__ (all
of JAX, or an endless loop in a script without a guard), outlive a parent that is killed, and cannot
be stopped at a time limit. Here each child is a fresh interpreter that imports one function:

  - a job that exceeds its CPU seconds is ended by a signal, whatever it is executing. The limit is
    CPU time, so that a busy machine does not change rewards; wall time may be ten times as long
  - memory is limited per child: a job that exceeds it ends its child and not the machine
  - the pipe to a child closes when its parent dies, even by SIGKILL, and the child then exits
"""

import atexit
import collections
import importlib
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

_BEGIN = "import sys; from srl_jax.rewards import workers; workers.serve(*sys.argv[1:])"
# Kinds of messages. A child sends the first three; `_Child.take` returns _DIED for a closed pipe.
_READY, _RESULT, _ERROR, _DIED = "ready", "result", "error", "died"


class Workers:
  """Up to `count` child processes that compute one function; started on demand and then kept."""

  def __init__(self, function: str, count: int, *, seconds: float = 0, megabytes: int = 0):
    """Starts no process yet.

    Args:
      function: "module:name" of a function of one argument; argument and result are pickled.
      count: largest number of children.
      seconds: CPU time per job; 0 for no limit.
      megabytes: address space per child; 0 for no limit.
    """
    self.function, self.count = function, count
    self.seconds, self.megabytes = seconds, megabytes
    self._idle: list[_Child] = []
    self._lock = threading.Lock()
    atexit.register(self.close)

  def run(self, jobs: Sequence[Any]) -> list[Any]:
    """Returns the function's results in the order of the jobs, None for a job if its child died.

    Jobs are sent in order, one at a time, to the next idle child. Calls from several threads run
    one after another.

    Raises:
      RuntimeError: a child cannot start, or the function raised.
    """
    results: list[Any] = [None] * len(jobs)
    waiting = collections.deque(range(len(jobs)))
    # pipe -> (child, index of its job); the index is None while the child is starting.
    busy: dict[Any, tuple[_Child, int | None]] = {}
    with self._lock:
      try:
        while waiting or busy:
          while waiting and self._idle:
            child = self._idle.pop()
            # A child that died while idle is dropped, and the job remains first in the queue.
            if child.give(jobs[waiting[0]]):
              busy[child.pipe] = child, waiting.popleft()
          # One new child per job that has none, as far as `count` allows.
          starting = sum(job is None for _, job in busy.values())
          for _ in range(min(self.count - len(busy), len(waiting) - starting)):
            child = _Child(self.function, self.seconds, self.megabytes)
            busy[child.pipe] = child, None
          for pipe in multiprocessing.connection.wait(list(busy)):
            child, job = busy[pipe]
            kind, value = child.take()
            if kind == _ERROR or (kind == _DIED and job is None):
              raise RuntimeError(f"a scoring process of {self.function} failed: {value}")
            del busy[pipe]
            # The child is idle again, after its start or a result. If the child died, its job is
            # not repeated: the result stays None.
            if kind != _DIED:
              self._idle.append(child)
            if kind == _RESULT:
              results[job] = value
      finally:  # after an error, children still compute: their results must not reach the next call
        for child, _ in busy.values():
          child.kill()
    return results

  def close(self) -> None:
    """Kills the children; the next `run` starts new ones."""
    with self._lock:
      while self._idle:
        self._idle.pop().kill()


class _Child:
  """One child process and the parent's end of the pipe to it."""

  def __init__(self, function: str, seconds: float, megabytes: int):
    self.pipe, theirs = multiprocessing.Pipe()
    # The child imports from the same folders; "" in sys.path is the current folder.
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    self.process = subprocess.Popen(
      [sys.executable, "-c", _BEGIN, str(theirs.fileno()), function, str(seconds), str(megabytes)],
      env=os.environ | {"PYTHONPATH": path},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      pass_fds=[theirs.fileno()],
    )
    theirs.close()

  def give(self, job: Any) -> bool:
    """Sends a job; returns False if the child is dead."""
    try:
      self.pipe.send(job)
    except OSError:
      self.kill()
      return False
    return True

  def take(self) -> tuple[str, Any]:
    """Returns the child's next message as (kind, value); waits for it."""
    try:
      return self.pipe.recv()
    except (EOFError, OSError):
      self.kill()
      return _DIED, f"it ended with exit code {self.process.returncode}"

  def kill(self) -> None:
    """Ends the process and waits for it, so that no zombie is left."""
    self.pipe.close()
    self.process.kill()
    self.process.wait()


# ---------------------------------------------------------------------------------- in the child


def serve(pipe: str, function: str, seconds: str, megabytes: str) -> None:
  """Runs in a child: imports the function, then answers jobs until the parent exits."""
  # The child exits when its parent closes the pipe. It ignores signals to the whole process group,
  # because the parent may still need it to finish its last step and save.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  parent = multiprocessing.connection.Connection(int(pipe))
  try:
    module, name = function.split(":")
    compute = getattr(importlib.import_module(module), name)
    if int(megabytes):
      resource.setrlimit(resource.RLIMIT_AS, (int(megabytes) << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent.send((_READY, None))
    os.dup2(
      os.open(os.devnull, os.O_WRONLY), 2
    )  # only now: errors of the import above stay visible, the parser's warnings do not
    while True:
      job = parent.recv()
      _limit(float(seconds))
      try:
        message = _RESULT, compute(job)
      except MemoryError:
        os._exit(1)  # an interpreter that ran out of memory is not reliable any more
      except Exception:
        message = _ERROR, traceback.format_exc()
      _limit(0)
      parent.send(message)
  except (EOFError, OSError):  # the parent closed the pipe
    os._exit(0)


def _limit(seconds: float) -> None:
  """Starts the timers that end this process by a signal; 0 stops them."""
  # Default actions of SIGPROF and SIGALRM end the process even inside C code.
  signal.setitimer(signal.ITIMER_PROF, seconds)
  signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
