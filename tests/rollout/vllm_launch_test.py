"""launch/run.sh with a server that it starts, in a terminal with Ctrl-C."""

import json
import os
import pathlib
import pty
import signal
import socket
import subprocess
import sys
import threading

import pytest
from vllm_processes import (
  FLAGS,
  MINIATURE,
  ROOT,
  SCRIPT,
  SETTINGS,
  eventually,
  free_port,
  processes,
  require_server,
)

pytestmark = pytest.mark.slow


class Terminal:
  """A command in a new terminal; `said` is its output so far."""

  def __init__(self, command, env):
    self._keys, end = pty.openpty()
    self.process = subprocess.Popen(
      ["setsid", "--ctty", *command],
      stdin=end,
      stdout=end,
      stderr=end,
      env=env,
      # Tests started in the background ignore Ctrl-C, and so would all that they start.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(end)
    self.said = ""
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def _read(self):
    try:
      while data := os.read(self._keys, 4096):
        self.said += data.decode(errors="replace")
    except OSError:  # the last process at the terminal has gone
      pass

  def ctrl_c(self):
    os.write(self._keys, b"\x03")

  def processes(self):
    return processes(session=self.process.pid)

  def close(self):
    self.process.wait(60)
    self._reader.join(10)
    os.close(self._keys)


@pytest.fixture
def launch(tmp_path, weights_root):
  """launch(workdir) -> Terminal in which launch/run.sh runs the quickstart.

  It runs in a copy of the checkout; its .venv is the environment of the tests.
  """
  require_server()
  checkout = tmp_path / "checkout"
  (checkout / ".venv" / "bin").mkdir(parents=True)
  for name in ("configs", "launch", "srl_jax", ".venv-vllm", "requirements.txt"):
    (checkout / name).symlink_to(ROOT / name)
  (checkout / "requirements-vllm.txt").symlink_to(ROOT / "requirements-vllm.txt")
  activate = f'PATH="{pathlib.Path(sys.executable).parent}:$PATH"\n'
  (checkout / ".venv" / "bin" / "activate").write_text(activate)
  stamp = "source launch/environment.sh; environment_stamp requirements.txt > .venv/installed"
  subprocess.run(["bash", "-c", stamp], cwd=checkout, check=True)
  settings = SETTINGS | {"PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
  settings |= {"SRL_VLLM_FLAGS": " ".join(FLAGS), "SRL_VLLM_PORT": str(free_port())}
  settings |= {"SRL_WEIGHTS_ROOT": str(weights_root)}
  opened = []

  def start(workdir):
    command = [checkout / "launch" / "run.sh", checkout / "configs" / "quickstart.py"]
    command += [f"--workdir={workdir}", f"--config.model={MINIATURE}"]
    command += ["--config.rollout.engine=vllm", f"--config.rollout.weights_root={weights_root}"]
    command += ["--config.eval.benchmark=", "--config.data.path=hard:100"]
    opened.append(Terminal(command, os.environ | settings))
    return opened[-1]

  yield start
  for terminal in opened:
    for pid in terminal.processes():  # only after a failure
      os.kill(pid, 9)
    terminal.close()


def commands(terminal):
  """The command lines of a terminal's processes."""
  found = []
  for pid in terminal.processes():
    path = pathlib.Path("/proc") / str(pid) / "cmdline"
    found.append(path.read_text().replace("\0", " ") if path.exists() else "")
  return found


def test_vllm_server_refuses_a_port_in_use(tmp_path):
  require_server()
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    ended = subprocess.run(
      [SCRIPT, MINIATURE, f"--port={port}"],
      env=os.environ | {"TMPDIR": str(tmp_path)},
      capture_output=True,
      text=True,
      timeout=60,
    )
  assert ended.returncode == 2
  assert f"127.0.0.1:{port}" in ended.stderr and "SRL_VLLM_PORT" in ended.stderr


def test_vllm_server_ends_at_ctrl_c_while_it_starts(launch, weights_root, tmp_path):
  terminal = launch(tmp_path / "run")
  starting = lambda: any("vllm.entrypoints" in command for command in commands(terminal))
  assert eventually(starting, 60), terminal.said
  terminal.ctrl_c()
  assert terminal.process.wait(30) == 130, terminal.said
  assert eventually(lambda: not terminal.processes(), 5), commands(terminal)
  assert "Traceback" not in terminal.said
  assert not (tmp_path / "run").exists()
  assert not list(weights_root.iterdir())


def test_run_that_is_killed_leaves_no_server(launch, tmp_path):
  terminal = launch(tmp_path / "run")
  starting = lambda: any("vllm.entrypoints" in command for command in commands(terminal))
  assert eventually(starting, 60), terminal.said
  terminal.process.kill()
  assert eventually(lambda: not terminal.processes(), 30), commands(terminal)


def test_run_saves_at_ctrl_c_and_stops_its_server(launch, weights_root, tmp_path):
  workdir = tmp_path / "run"
  terminal = launch(workdir)
  metrics = workdir / "metrics.jsonl"
  steps = lambda: len(metrics.read_text().splitlines()) if metrics.exists() else 0
  ended = lambda: terminal.process.poll() is not None
  assert eventually(lambda: steps() > 3 or ended(), 600) and not ended(), terminal.said
  assert any("vllm.entrypoints" in command for command in commands(terminal))
  terminal.ctrl_c()
  assert terminal.process.wait(90) == 0, terminal.said
  assert eventually(lambda: not terminal.processes(), 5), commands(terminal)
  assert "SIGINT" in terminal.said
  assert "Traceback" not in terminal.said
  assert terminal.said.count("ready: ") == 1
  saved = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
  last = json.loads(metrics.read_text().splitlines()[-1])["step"]
  assert max(saved) == last >= 3
  assert not list(weights_root.iterdir())
