"""The sandbox, attacked: everything here runs in it for real."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from srl_jax.errors import UserError
from srl_jax.evals.swe import sandbox

needs_sandbox = pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing()))
SMALL = sandbox.Limits(seconds=20, memory=512, processes=50, disk=32, output=1)


@pytest.fixture
def attack(tmp_path):
  """attack(script, **limits) -> Run, on a tree with one file."""
  tree = tmp_path / "tree"
  tree.mkdir()
  (tree / "a.txt").write_text("as it was\n")

  def run(script, **limits):
    limits = sandbox.Limits(**{**vars(SMALL), **limits})
    return sandbox.run(script, tree, files={"given.txt": b"given\n"}, limits=limits)

  run.tree = tree
  return run


def marks():
  """A name that no other process has, and how many processes have it in their command line."""
  name = f"mark_{os.getpid()}_{time.monotonic_ns()}"

  def count():
    found = 0
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
      try:
        found += name.encode() in entry.read_bytes()
      except OSError:
        continue
    return found

  return name, count


def all_end(count, seconds=10):
  """Whether there is none left in a moment: the kernel ends a box's processes side by side."""
  deadline = time.monotonic() + seconds
  while count() and time.monotonic() < deadline:
    time.sleep(0.02)
  return count() == 0


@needs_sandbox
def test_sandbox_changes_a_copy_of_the_tree(attack):
  run = attack("pwd; cat a.txt /files/given.txt; echo new > a.txt; cat a.txt; exit 3")
  assert (run.code, run.ended) == (3, "exited")
  assert run.output.decode() == "/testbed\nas it was\ngiven\nnew\n"
  assert (attack.tree / "a.txt").read_text() == "as it was\n"


@needs_sandbox
def test_sandbox_has_no_network_but_loopback(attack):
  connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
  run = attack(f"python3 -c '{connect}' 1.1.1.1 80")
  assert run.code == 1 and b"unreachable" in run.output
  listen = 'import socket; s = socket.create_server(("localhost", 8000)); s.accept(); print(1)'
  served = attack(f"python3 -c '{listen}' & sleep 1; python3 -c '{connect}' localhost 8000; wait")
  assert served.output == b"1\n"


@needs_sandbox
def test_sandbox_refuses_writes_outside(attack, tmp_path):
  """Every place but the copy, /tmp and /dev/shm is read-only; nothing of this machine is there."""
  places = ["/usr/x", "/x", "/etc/x", "/dev/x", "/source/x", "/files/x", "/root/x", "/home/x"]
  places += [f"{tmp_path}/x", "/proc/sys/kernel/hostname", "/sys/x"]
  run = attack("\n".join(f"(echo x > {place}) 2> /dev/null && echo {place}" for place in places))
  assert run.output == b""
  seen = attack(f"ls -d {tmp_path} /root /home /work {pathlib.Path.home()} 2> /dev/null; env")
  names = {line.partition("=")[0] for line in seen.output.decode().splitlines()}
  assert names <= {"PATH", "HOME", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}


@needs_sandbox
def test_sandbox_follows_no_links_out_of_the_tree(attack, tmp_path):
  """A link in the tree stays a link: it is not followed when the tree is copied."""
  secret = tmp_path / "secret"
  secret.write_text("secret\n")
  (attack.tree / "link").symlink_to(secret)
  (attack.tree / "folder").symlink_to(tmp_path)
  run = attack("cat link folder/secret; echo x > link; echo x > folder/y; ls -l")
  assert b"secret\n" not in run.output.replace(str(secret).encode(), b"")
  assert secret.read_text() == "secret\n" and not (tmp_path / "y").exists()


@needs_sandbox
def test_sandbox_has_no_capabilities(attack):
  run = attack(
    "grep -E 'CapEff|CapPrm|CapBnd|NoNewPrivs' /proc/self/status; id -u; unshare -U true"
  )
  lines = run.output.decode().split("\n")
  assert [line.split()[1] for line in lines[:4]] == ["0" * 16] * 3 + ["1"]
  assert lines[4] != "0" and "failed" in lines[5]


@needs_sandbox
def test_sandbox_bounds_memory(attack):
  """Of one process, and of all together."""
  one = attack("python3 -c 'x = bytearray(2**30)'")
  assert one.code == 1 and b"MemoryError" in one.output
  many = "python3 -c 'import time; x = bytearray(200 * 2**20); time.sleep(15)' &\n" * 6 + "wait"
  assert attack(many).ended == "memory"


@needs_sandbox
def test_sandbox_bounds_processes(attack):
  name, count = marks()
  run = attack("bomb() { bomb | bomb & }; bomb; sleep 1; echo over", seconds=10)
  assert b"Resource temporarily unavailable" in run.output
  start = f"exec -a {name} sleep 60 &\n" * 100
  attack(f"{start} sleep 1", seconds=3)
  assert all_end(count)


@needs_sandbox
@pytest.mark.parametrize("place", ["/testbed", "/tmp", "/dev/shm"])
def test_sandbox_bounds_disk(attack, place):
  """In many files, since one is bounded by itself."""
  write = f"for i in 1 2 3 4; do head -c 16M /dev/zero > {place}/$i; done"
  run = attack(f"{write} 2> /dev/null; du -sm {place} | cut -f1")
  assert int(run.output.split()[0]) <= 33


@needs_sandbox
def test_sandbox_bounds_output_and_time(attack):
  endless = attack("yes")
  assert endless.ended == "output" and len(endless.output) == 2**20 and endless.code is None
  slow = attack("echo begun; sleep 60", seconds=1)
  assert (slow.ended, slow.output) == ("time", b"begun\n") and slow.seconds < 10
  closed = attack("exec > /dev/null 2>&1; sleep 60", seconds=1)  # without any output to wait for
  assert closed.seconds < 10 and closed.ended == "time"


@needs_sandbox
def test_sandbox_ends_daemons(attack):
  name, count = marks()
  detach = f"(setsid bash -c 'exec -a {name} sleep 60' > /dev/null 2>&1 &)"
  assert attack(f"{detach}; sleep 0.3; exit 0").code == 0
  assert all_end(count)
  attack(f"{detach}; sleep 60", seconds=1)
  assert all_end(count)


@needs_sandbox
def test_sandbox_ends_with_its_parent(attack):
  """Killed by SIGKILL, this process leaves nothing behind."""
  name, count = marks()
  code = (
    "import pathlib; from srl_jax.evals.swe import sandbox;"
    f"sandbox.run('exec -a {name} sleep 60', pathlib.Path({str(attack.tree)!r}))"
  )
  root = pathlib.Path(__file__).resolve().parents[3]
  process = subprocess.Popen([sys.executable, "-c", code], cwd=root)
  deadline = time.monotonic() + 30
  while count() < 2 and time.monotonic() < deadline:  # ours, and the one in the box
    time.sleep(0.1)
  process.kill()
  process.wait()
  assert all_end(count)


def test_sandbox_without_bubblewrap_runs_nothing(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  sandbox.missing.cache_clear()
  try:
    with pytest.raises(UserError, match="apt install bubblewrap"):
      sandbox.run(f"touch {tmp_path}/made", tmp_path)
    assert not (tmp_path / "made").exists()
  finally:
    sandbox.missing.cache_clear()
