"""The page of a run, WORKDIR/report.html, written by another process while the run trains.

A page costs a run little: its process has the lowest priority while the run trains, is started at
most once a minute, and so seldom that the pages take at most SHARE of one core. A page that fails
never stops a run.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import time

import srl_jax

SECONDS = 60.0  # at least, between the starts of two pages
SHARE = 0.01  # processor time of a page / time until the next one
PATIENCE = 120.0  # seconds that the end of a run waits for its last page


class Page:
  """Writes a run's page from time to time.

  Args:
    workdir: of the run.
    enabled: config.log.report, and whether this process writes the run's files.
  """

  def __init__(self, workdir: pathlib.Path, enabled: bool):
    self.workdir, self.enabled = workdir, enabled
    self._next = time.monotonic() + SECONDS
    self._process: subprocess.Popen | None = None
    self._warned = False

  def write_if_due(self) -> None:
    """Starts a page if it is time for one and the last one is finished; returns at once."""
    if not self.enabled or self.is_running() or time.monotonic() < self._next:
      return
    self._next = time.monotonic() + SECONDS
    self._start()
    if self._process:
      with contextlib.suppress(OSError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)

  def write_last(self) -> None:
    """Writes the page of a finished run, at the normal priority, and waits until it is written."""
    if not self.enabled:
      return
    self._stop()
    self._start()
    deadline = time.monotonic() + PATIENCE
    while self.is_running():
      if time.monotonic() > deadline:
        self._stop()
        self._warn(f"it was not written within {PATIENCE:.0f} s")
      time.sleep(0.05)

  def close(self) -> None:
    """Ends a page that is being written; the file of the one before stays."""
    self._stop()

  def _start(self) -> None:
    """Starts the process; it needs no GPU and must not import JAX, which would take one."""
    # The flag is a list in the form of CSV, and a path may have commas and quotation marks.
    quoted = '"' + str(self.workdir).replace('"', '""') + '"'
    command = [sys.executable, "-m", "srl_jax.report", f"--workdirs={quoted}", "--quiet"]
    package = str(pathlib.Path(srl_jax.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    try:
      self._process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,  # one line, or a traceback: it fits into a pipe
        env=os.environ | {"PYTHONPATH": path},
      )
    except OSError as error:
      self._warn(str(error))

  def is_running(self) -> bool:
    """Returns whether a page is being written; after its end, decides when the next one is due."""
    if self._process is None:
      return False
    pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
    if not pid:
      return True
    self._process.returncode = os.waitstatus_to_exitcode(status)
    seconds = (usage.ru_utime + usage.ru_stime) / SHARE
    self._next = max(self._next, time.monotonic() + seconds)
    errors = self._process.stderr.read().decode(errors="replace").strip().splitlines()
    if self._process.returncode:
      self._warn(errors[-1] if errors else f"exit code {self._process.returncode}")
    self._process.stderr.close()
    self._process = None
    return False

  def _stop(self) -> None:
    """Ends the process, if one is running."""
    if self._process is not None and self.is_running():
      with contextlib.suppress(OSError):
        self._process.kill()
      self._process.wait()
      self._process.stderr.close()
      self._process = None

  def _warn(self, reason: str) -> None:
    """Prints one line, the first time only."""
    if not self._warned:
      self._warned = True
      print(
        f"warning: {self.workdir}/report.html cannot be written ({reason}); training continues."
        " log.report=False disables it",
        file=sys.stderr,
        flush=True,
      )
