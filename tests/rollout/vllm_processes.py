"""Real vLLM servers for tests: started by launch/vllm_server.sh, ended with all their processes."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time
import warnings

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "vllm_server.sh"
MINIATURE = ROOT / "configs" / "miniature"

# Several servers, and what they serve, share the machine.
FLAGS = ["--max-num-seqs=32", "--enforce-eager"]
SETTINGS = {
  "VLLM_CPU_KVCACHE_SPACE": "1",
  "VLLM_CPU_OMP_THREADS_BIND": "nobind",
  "OMP_NUM_THREADS": "1",
}


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


class Running:
  """A server's process group, from launch/vllm_server.sh; it may still be starting.

  Args:
    model: folder.
    folder: for its output.
    weights_root: its SRL_WEIGHTS_ROOT.
    port: of a server that this one replaces; else a free one.
  """

  def __init__(self, model, folder, weights_root, *flags, port: int | None = None):
    port = port or free_port()
    self.pid = None
    self.url = f"http://127.0.0.1:{port}"
    self.log = pathlib.Path(folder) / f"server_{port}.log"
    settings = {"SRL_WEIGHTS_ROOT": str(weights_root), "SRL_VLLM_LOG": str(self.log)}
    self.process = subprocess.Popen(
      [SCRIPT, model, f"--port={port}", "--dtype=float32", *FLAGS, *flags],
      env=os.environ | SETTINGS | settings,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def wait(self) -> "Running":
    """Returns when it has printed that it is ready; fails with its output when it ends instead."""
    if self.pid:
      return self
    line = self.process.stdout.readline()
    while line and not line.startswith("ready:"):
      line = self.process.stdout.readline()
    if not line:
      tail = self.log.read_text(errors="replace")[-3000:] if self.log.exists() else "no log"
      pytest.fail(f"the vLLM server ended while starting:\n{tail}")
    self.pid = int(line.split("pid ")[1].split(",")[0])
    return self

  def group(self) -> list[int]:
    """Living processes of the server's group; none before it was ready once."""
    return processes(group=self.pid) if self.pid else []

  def signal(self, number) -> None:
    """Sends a signal to all processes of the server, not to the script that watches it."""
    os.killpg(self.pid, number)

  def stop(self) -> None:
    if self.process.poll() is None:
      if self.pid:  # it may have been stopped
        with contextlib.suppress(ProcessLookupError):
          self.signal(signal.SIGCONT)
      self.process.send_signal(signal.SIGTERM)
    self.process.wait(60)
    self.process.stdout.close()


def processes(*, group=None, session=None) -> list[int]:
  """Ids of the living processes of a group or session, in order; zombies do not count."""
  found = []
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      stat = (entry / "stat").read_text().rpartition(")")[2].split()
      if stat[0] not in "ZX" and (group or session) == int(stat[2 if group else 3]):
        found.append(int(entry.name))
  return sorted(found)


def require_server() -> None:
  """Makes .venv-vllm, or skips the test, loudly, where that is not possible."""
  made = subprocess.run([SCRIPT, "--install-only"], capture_output=True, text=True)
  if made.returncode:
    reason = (made.stderr.strip() or "no message").splitlines()[-1]
    warnings.warn(f"NOTHING WAS TESTED AGAINST A REAL vLLM SERVER: {reason}", stacklevel=2)
    pytest.skip(f".venv-vllm cannot be made here (needs the package index): {reason}")


def eventually(condition, seconds=30.0) -> bool:
  """Whether `condition()` becomes true in time."""
  end = time.monotonic() + seconds
  while not condition():
    if time.monotonic() > end:
      return False
    time.sleep(0.1)
  return True
