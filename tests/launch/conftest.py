"""A checkout with a fake trainer and fake servers: only the launch scripts are tested."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Counts to its last step and saves, as a run does: SIGTERM or Ctrl-C saves and ends with 0.
TRAINER = """
import json, os, pathlib, signal, sys, time
workdir = pathlib.Path([a for a in sys.argv if a.startswith("--workdir=")][-1].partition("=")[2])
workdir.mkdir(parents=True, exist_ok=True)
if "--config.fail" in sys.argv:
  sys.exit(2)
process = os.environ.get("SLURM_PROCID") or os.environ.get("JAX_PROCESS_ID") or "0"
with (workdir / "started").open("a") as file:
  file.write(json.dumps([process, os.environ.get("CUDA_VISIBLE_DEVICES"), *sys.argv[1:]]) + "\\n")
saved, stop = workdir / "saved", []
for number in (signal.SIGTERM, signal.SIGINT):
  signal.signal(number, lambda *_: stop.append(1))
step = int(saved.read_text()) if saved.exists() else 0
print("training from", step, flush=True)
last = int((workdir / "last").read_text()) if (workdir / "last").exists() else 10
if process == "0" and step < last:
  (workdir / "summary.json").unlink(missing_ok=True)  # as srl_jax.train does when it continues
while step < last and not stop:
  time.sleep(0.02)
  step += 1
if process == "0":
  saved.write_text(str(step))
  if step == last:
    (workdir / "partial").write_text("{}")
    os.replace(workdir / "partial", workdir / "summary.json")
"""
SERVER = """#!/bin/bash
[ "$1" != --install-only ] || exit 0
trap 'exit 143' TERM
[[ "$*" != *--broken* ]] || { echo "error: cannot start" >&2; exit 2; }
echo "ready: $CUDA_VISIBLE_DEVICES $SRL_WEIGHTS_ROOT $*"
while true; do sleep 0.1; done
"""
MODEL = """
import sys
if "--config.rollout.engine=vllm" in sys.argv:
  print("a model", *[a for a in sys.argv if a.startswith("--config.vllm")], sep="\\n")
"""


@pytest.fixture
def checkout(tmp_path):
  """A copy of launch/ with fakes of srl_jax.train, vllm_server.sh and server_of_config.py."""
  root = tmp_path / "checkout"
  shutil.copytree(ROOT / "launch", root / "launch")
  shutil.copy(ROOT / "requirements.txt", root)
  (root / "launch" / "vllm_server.sh").write_text(SERVER)
  (root / "launch" / "server_of_config.py").write_text(MODEL)
  (root / "configs").mkdir()
  (root / "configs" / "a.py").touch()
  (root / "srl_jax").mkdir()
  (root / "srl_jax" / "__init__.py").touch()  # or the real one, further down the path, wins
  (root / "srl_jax" / "train.py").write_text(TRAINER)
  programs = root / ".venv" / "bin"
  programs.mkdir(parents=True)
  tool(programs, "python", f'[ "$2" = pip ] || exec {sys.executable} "$@"')
  (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
  return root


def tool(folder: pathlib.Path, name: str, script: str) -> None:
  """A program of a cluster, on PATH before the real one if there is any."""
  folder.mkdir(exist_ok=True)
  path = folder / name
  path.write_text(f"#!/bin/bash\n{script}\n")
  path.chmod(0o755)


@pytest.fixture
def call(checkout, tmp_path):
  """call(script, *arguments, **environment) -> the finished process, started in an empty folder."""
  here = tmp_path / "here"
  here.mkdir()

  def start(script, *arguments, popen=subprocess.run, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SRL_", "SLURM_"))}
    tools = f"{tmp_path / 'tools'}:{os.environ['PATH']}"
    return popen(
      [str(checkout / "launch" / script), *arguments],
      env=inherited | {"PATH": tools} | environment,
      cwd=here,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )

  return start
