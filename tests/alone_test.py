"""Two commands never write to one folder at the same time."""

import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from srl_jax import alone

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOLDER = """
import pathlib, sys, time
from srl_jax import alone
with alone.alone_in(pathlib.Path(sys.argv[1])):
  print("in", flush=True)
  time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
  """A process in tmp_path/"run"."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "in\n"
  yield process
  process.kill()
  process.wait()


def test_a_second_process_is_told_who_is_there(holder, tmp_path):
  who = f"run: process {holder.pid} on {socket.gethostname()} works in it"
  with pytest.raises(ValueError, match=who), alone.alone_in(tmp_path / "run"):
    pass


def test_a_killed_process_leaves_no_lock(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with alone.alone_in(tmp_path / "run"):
    assert f"process {os.getpid()} on" in (tmp_path / "run" / ".lock").read_text()


def test_one_after_the_other(tmp_path):
  for _ in range(2):
    with alone.alone_in(tmp_path / "a" / "run"):
      pass


def test_another_host_may_have_died(holder, tmp_path, monkeypatch):
  """Its lock goes with the file server's lease; then, and not before, it is an error."""
  (tmp_path / "run" / ".lock").write_text("process 7 on elsewhere\n")
  pauses = []

  def sleep(seconds):
    pauses.append(seconds)
    if len(pauses) == 3:
      holder.kill()
      holder.wait()

  monkeypatch.setattr(alone.time, "sleep", sleep)
  with alone.alone_in(tmp_path / "run"):
    assert pauses == [1, 1, 1]


def test_another_host_that_lives(holder, tmp_path, monkeypatch):
  (tmp_path / "run" / ".lock").write_text("process 7 on elsewhere\n")
  monkeypatch.setattr(alone, "LEASE_SECONDS", -1.0)
  with pytest.raises(ValueError, match="process 7 on elsewhere"), alone.alone_in(tmp_path / "run"):
    pass


def test_no_locks_here(tmp_path, monkeypatch, capsys):
  def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(alone.fcntl, "flock", flock)
  with alone.alone_in(tmp_path):
    assert "has no locks (Function not implemented)" in capsys.readouterr().err
