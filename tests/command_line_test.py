"""Bad command lines end with one line and exit code 2; bugs keep their traceback."""

import os
import pathlib
import subprocess
import sys

import pytest

from srl_jax import command_line

ROOT = pathlib.Path(__file__).resolve().parent.parent

SCRIPT = """
from absl import flags
from ml_collections import config_flags
from srl_jax import command_line
from srl_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config")
MODE = flags.DEFINE_string("mode", "", "")


def main(argv):
  if MODE.value == "ours":
    with open(__file__):
      try:
        int("x")
      except ValueError as error:
        raise UserError(
          "rows.jsonl:3: broken\\nbeyond repair"
        ) from error
  if MODE.value == "library":
    import numpy
    numpy.zeros((2, 3)).reshape(4)
  if MODE.value == "path":
    open("/dev/null/x", "w")
  if MODE.value == "disk":
    with open("/dev/full", "w") as file:
      file.write("x")
  if MODE.value == "socket":
    import socket
    socket.create_connection(("127.0.0.1", 1))
  if MODE.value == "bug":
    raise KeyError("boom")
  print("seed", CONFIG.value.seed if CONFIG.value else None)


if __name__ == "__main__":
  command_line.run(main)
"""

CONFIG = """
import ml_collections

def get_config(arg=""):
  if arg:
    raise ValueError(f"unknown argument {arg!r}; use none")
  return ml_collections.ConfigDict(dict(seed=1, data=dict(path="x", split="train")))
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  folder = tmp_path_factory.mktemp("command")
  (folder / "script.py").write_text(SCRIPT)
  (folder / "config.py").write_text(CONFIG)
  (folder / "typo.py").write_text("\ndef get_config(:\n  pass\n")
  (folder / "name.py").write_text("def get_config(arg=''):\n  return nosuch\n")
  (folder / "import.py").write_text("\n\nimport nosuch\n")
  (folder / "none.py").write_text("seed = 1\n")
  (folder / "no_arg.py").write_text("def get_config():\n  return None\n")
  (folder / "bytes.py").write_bytes(b"\xff\x00")

  def run(*flags):
    return subprocess.run(
      [sys.executable, "script.py", *flags],
      cwd=folder,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )

  return run


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--nope=1"], "error: Unknown command line flag 'nope'"),
    (["--config=missing.py"], "error: config file 'missing.py'"),
    (["--config=missing.py", "--config.seed=1"], "error: config file 'missing.py'"),
    (
      ["--config=config.py", "--config.data.pth=y"],
      "error: --config.data.pth: the config config.py has no key 'data.pth'; "
      "did you mean 'data.path'?",
    ),
    (["--config=config.py", "--config.zz=1"], "has no key 'zz'; it has data, data.path, data.spl"),
    (["--config=config.py", "--config.seed.x=1"], "has no key 'seed.x'; did you mean 'seed'?"),
    (["--config=config.py", "--config.seed=abc"], "error: flag --config.seed=abc: invalid literal"),
    (["--config=config.py:fast"], "error: flag --config=config.py:fast: unknown argument 'fast'"),
    (["--config=typo.py"], "typo.py:2: invalid syntax"),
    (["--config=name.py"], "error: name.py:2: NameError: name 'nosuch' is not defined"),
    (["--config=import.py"], "error: import.py:3: ModuleNotFoundError: No module named 'nosuch'"),
    (["--config=none.py"], "error: none.py: it has no function get_config"),
    (["--config=no_arg.py:x"], "error: flag --config=no_arg.py:x: TypeError: get_config() takes 0"),
    (["--config=bytes.py"], "a config is a Python file"),
    (["--mode=path"], "error: /dev/null/x: Not a directory"),
    (["--mode=disk"], "No space left on device: "),
    (["--config=config.py", "stray"], "error: unexpected argument 'stray'"),
    (["--mode=ours"], "error: rows.jsonl:3: broken beyond repair"),
  ],
)
def test_run_reports_bad_input_in_one_line(command, flags, message):
  result = command(*flags)
  assert result.returncode == 2
  assert message in result.stderr
  assert result.stderr.startswith("error: ")
  assert result.stderr.count("\n") == 1
  assert result.stdout == ""


@pytest.mark.parametrize("mode", ["library", "socket", "bug"])
def test_run_keeps_the_traceback_of_bugs(command, mode):
  result = command(f"--mode={mode}")
  assert result.returncode == 1
  assert "Traceback" in result.stderr


@pytest.mark.parametrize("mode, code", [("ours", 2), ("", 0)])
def test_exit_code_while_a_program_compiles(tmp_path, mode, code):
  """Python's finalisation would abort the process: a daemon thread of it is in XLA."""
  script = tmp_path / "compiles.py"
  thread = """
  import threading, time, jax, jax.numpy as jnp
  def deep(x):
    for k in range(400):
      x = jnp.sort(jnp.sin(x) * k)
    return x
  work = lambda: [jax.jit(deep).lower(jnp.zeros(k)).compile() for k in range(8, 99)]
  threading.Thread(target=work, name=command_line.DAEMONS[0], daemon=True).start()
  time.sleep(2)
"""
  script.write_text(SCRIPT.replace("def main(argv):\n", f"def main(argv):{thread}", 1))
  env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  command = [sys.executable, script, f"--mode={mode}"]
  result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
  assert result.returncode == code, result.stderr
  assert "Fatal" not in result.stderr and "terminate" not in result.stderr


def test_run_parses_flags_and_config_overrides(command):
  result = command("--config=config.py", "--config.seed=7")
  assert (result.returncode, result.stdout) == (0, "seed 7\n")


@pytest.mark.parametrize(
  "argument, expanded",
  [
    ("~/x", "HOME/x"),
    ("--output=~/x", "HOME/x"),
    ("--output=~", "HOME"),
    ("--workdirs=~/a,~/b", "HOME/a,HOME/b"),
    ("--config=~/c.py:data=~/rows.jsonl,model=~/m", "HOME/c.py:data=HOME/rows.jsonl,model=HOME/m"),
    ("--server=http://host/~user", "http://host/~user"),
    ("--output=a~/b", "a~/b"),
  ],
)
def test_run_expands_a_tilde_in_every_flag(monkeypatch, tmp_path, argument, expanded):
  monkeypatch.setenv("HOME", str(tmp_path))
  flag, equals, _ = argument.partition("=")
  wanted = expanded.replace("HOME", str(tmp_path))
  assert command_line.at_home(argument) == (f"{flag}={wanted}" if equals else wanted)
