"""Child processes that score, each ended by the kernel when a job takes too much.

Why not multiprocessing or concurrent.futures: their children import the parent's __main__ (all of
JAX, or an endless loop in a script without a guard), outlive a parent that is killed, and cannot
be stopped at a time limit. Here a child is a fresh interpreter that imports one function:

  - a job past its limit of CPU seconds is ended by a signal, whatever it is doing; CPU time, so
    that a busy machine does not change rewards, and ten times as much wall time
  - memory is limited per child: a job that runs out of it costs the child, not the machine
  - the pipe to a child closes when its parent dies, however it dies, and the child then ends
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
_READY, _RESULT, _ERROR, _DIED = "ready", "result", "error", "died"


class Workers:
  """Up to `count` children that compute one function; started when first needed, then kept."""

  def __init__(self, function: str, count: int, *, seconds: float = 0, megabytes: int = 0):
    """Starts nothing yet.

    Args:
      function: "module:name" of a function of one argument; argument and result are pickled.
      count: children at most.
      seconds: CPU time per job; 0 for no limit.
      megabytes: address space per child; 0 for no limit.
    """
    self.function, self.count = function, count
    self.seconds, self.megabytes = seconds, megabytes
    self._idle: list[_Child] = []
    self._lock = threading.Lock()
    atexit.register(self.close)

  def run(self, jobs: Sequence[Any]) -> list[Any]:
    """Returns the function's results in the order of the jobs, None where a job cost its child.

    Jobs go out in their order, one at a time, to whichever child is free. A call from another
    thread waits for the one under way.

    Raises:
      RuntimeError: a child cannot start, or the function raised.
    """
    results: list[Any] = [None] * len(jobs)
    waiting = collections.deque(range(len(jobs)))
    busy: dict[Any, tuple[_Child, int | None]] = {}  # pipe -> child, its job (None: it starts)
    with self._lock:
      try:
        while waiting or busy:
          while waiting and self._idle:
            child = self._idle.pop()
            if child.give(jobs[waiting[0]]):  # else it died while idle: no fault of the job
              busy[child.pipe] = child, waiting.popleft()
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
            if kind != _DIED:
              self._idle.append(child)
            if kind == _RESULT:
              results[job] = value
      finally:  # after an error or an interrupt: answers still due must not reach the next call
        for child, _ in busy.values():
          child.kill()
    return results

  def close(self) -> None:
    """Ends the children; the next `run` starts new ones."""
    with self._lock:
      while self._idle:
        self._idle.pop().kill()


class _Child:
  """One child process and the parent's end of the pipe to it."""

  def __init__(self, function: str, seconds: float, megabytes: int):
    self.pipe, theirs = multiprocessing.Pipe()
    # What the parent can import, the child can; "" in sys.path is the current folder.
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
    """Sends a job; False if the child is dead."""
    try:
      self.pipe.send(job)
    except OSError:
      self.kill()
      return False
    return True

  def take(self) -> tuple[str, Any]:
    """Returns the child's next message: its kind and what it carries."""
    try:
      return self.pipe.recv()
    except (EOFError, OSError):
      self.kill()
      return _DIED, f"it ended with exit code {self.process.returncode}"

  def kill(self) -> None:
    self.pipe.close()
    self.process.kill()
    self.process.wait()


# ---------------------------------------------------------------------------------- in the child


def serve(pipe: str, function: str, seconds: str, megabytes: str) -> None:
  """The life of a child: import, then answer jobs until the parent is gone."""
  # A parent that ends closes the pipe, which ends this process. A signal to the whole process group
  # must not end it earlier: the parent may need it until it has saved.
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
    )  # libraries print warnings about text that they cannot parse
    while True:
      job = parent.recv()
      _limit(float(seconds))
      try:
        message = _RESULT, compute(job)
      except MemoryError:
        os._exit(1)  # what is left of this interpreter is not to be trusted
      except Exception:
        message = _ERROR, traceback.format_exc()
      _limit(0)
      parent.send(message)
  except (EOFError, OSError):  # the parent is gone
    os._exit(0)


def _limit(seconds: float) -> None:
  """Sets the timers whose signals end this process; 0 stops them."""
  signal.setitimer(signal.ITIMER_PROF, seconds)
  signal.setitimer(signal.ITIMER_REAL, 10 * seconds)
