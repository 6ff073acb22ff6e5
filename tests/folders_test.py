"""Two commands never write to one folder at the same time."""

import errno
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from srl_jax import folders
from srl_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOLDER = """
import pathlib, sys, time
from srl_jax import folders
from srl_jax.errors import UserError
with folders.locked(pathlib.Path(sys.argv[1])):
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


def test_locked_names_the_process_that_holds_it(holder, tmp_path):
  who = f"run: process {holder.pid} on {socket.gethostname()} works in it"
  with pytest.raises(ValueError, match=who), folders.locked(tmp_path / "run"):
    pass


def test_locked_is_free_after_a_kill(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with folders.locked(tmp_path / "run"):
    assert f"process {os.getpid()} on" in (tmp_path / "run" / ".lock_holder").read_text()


def test_locked_can_be_taken_again(tmp_path):
  for _ in range(2):
    with folders.locked(tmp_path / "a" / "run"):
      pass


def test_locked_takes_over_from_a_dead_host(holder, tmp_path, monkeypatch):
  """Its lock goes with the file server's lease; then, and not before, it is an error."""
  (tmp_path / "run" / ".lock_holder").write_text("process 7 on elsewhere\n")
  pauses = []

  def sleep(seconds):
    pauses.append(seconds)
    if len(pauses) == 3:
      holder.kill()
      holder.wait()

  monkeypatch.setattr(folders.time, "sleep", sleep)
  with folders.locked(tmp_path / "run"):
    assert pauses == [1, 1, 1]


def test_locked_refuses_a_living_host(holder, tmp_path, monkeypatch):
  (tmp_path / "run" / ".lock_holder").write_text("process 7 on elsewhere\n")
  monkeypatch.setattr(folders, "LEASE_SECONDS", -1.0)
  with pytest.raises(ValueError, match="process 7 on elsewhere"), folders.locked(tmp_path / "run"):
    pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_locked_warns_on_a_file_system_without_locks(tmp_path, monkeypatch, capsys, number):
  def flock(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)
  with folders.locked(tmp_path):
    assert "its file system has no locks" in capsys.readouterr().err


def test_check_same_settings_shows_where_long_values_differ(tmp_path):
  same = "x" * 300
  with pytest.raises(UserError, match="was ... x+one.*is ... x+two"):
    folders.check_same_settings(
      tmp_path, {"a": same + "one"}, {"a": same + "two"}, holds="a run", flag="--workdir"
    )


def test_try_lock_takes_regular_files_only(tmp_path):
  (tmp_path / "target").write_text("text")
  (tmp_path / "link").symlink_to(tmp_path / "target")
  (tmp_path / "dangling").symlink_to(tmp_path / "none")
  (tmp_path / "folder").mkdir()
  os.mkfifo(tmp_path / "fifo")
  for name in ("link", "dangling", "folder", "fifo"):
    assert folders.try_lock(tmp_path / name) is None
  assert not (tmp_path / "none").exists() and (tmp_path / "target").read_text() == "text"
  lock = folders.try_lock(tmp_path / "target")
  assert lock and (tmp_path / "target").read_text() == "text"
  lock.release()


# ---- whole files


def test_replacing_replaces_a_file_as_a_whole(tmp_path):
  folders.write_json(tmp_path / "a.json", {"a": 1})
  with pytest.raises(RuntimeError), folders.replacing(tmp_path / "a.json") as file:
    file.write("half of")
    raise RuntimeError
  assert (tmp_path / "a.json").read_text() == '{\n "a": 1\n}\n'


@pytest.mark.parametrize(
  "text, left", [("", ""), ("a\nb\n", "a\nb\n"), ("a\nhalf", "a\n"), ("half", "")]
)
def test_cut_to_whole_lines_removes_a_half_written_line(tmp_path, text, left):
  path = tmp_path / "rows.jsonl"
  path.write_text(text)
  assert folders.cut_to_whole_lines(path) == bool(left)
  assert path.read_text() == left


def test_cut_to_whole_lines_of_no_file(tmp_path):
  assert not folders.cut_to_whole_lines(tmp_path / "rows.jsonl")


# ---- one owner


def test_check_same_settings_refuses_with_what_differs(tmp_path):
  check = lambda before, now: folders.check_same_settings(
    tmp_path, before, now, holds="a run of another config", flag="--workdir", free=("mesh",)
  )
  check({"seed": 1, "mesh": "a"}, {"seed": 1, "mesh": "b"})
  with pytest.raises(UserError, match="seed was 1, is 2; lr was None, is 0.1.*--work"):
    check({"seed": 1}, {"seed": 2, "lr": 0.1})
