"""launch/run.sh: whether it starts a vLLM server beside the trainer."""

import functools
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import tool
from tests.launch.node_test import long_run, running, wait_for

VLLM = ("run.sh", "configs/a.py", "--workdir=w", "--config.rollout.engine=vllm")


@pytest.fixture
def gpus(tmp_path):
  """A machine on which nvidia-smi finds GPUs, and JAX is free to use them."""
  tool(tmp_path / "tools", "nvidia-smi", "exit 0")
  return {"JAX_PLATFORMS": ""}


def test_run_refuses_a_server_where_the_trainer_takes_all_gpus(call, gpus, tmp_path):
  done = call(*VLLM, **gpus)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert "rollout.engine=vllm" in line and "launch/node.sh configs/a.py" in line
  assert "ready:" not in done.stdout
  assert not (tmp_path / "here" / "w").exists()


@pytest.mark.parametrize(
  "flags", [("--config.rollout.engine=builtin",), ("--config.rollout.engine=vllm", "--servers")]
)
def test_run_trains_on_gpus_if_it_starts_no_server(call, checkout, gpus, flags):
  """With the built-in engine, or with servers of the user: the config then needs no server."""
  model = 'import sys\nif "--servers" not in sys.argv and sys.argv[-1].endswith("vllm"): print("m")'
  (checkout / "launch" / "server_of_config.py").write_text(model)
  done = call("run.sh", "configs/a.py", "--workdir=w", *flags, **gpus)
  assert done.returncode == 0, done.stderr
  assert "training from 0" in done.stdout and "ready:" not in done.stdout


@pytest.mark.parametrize("gpu_present", [False, True])
def test_run_starts_a_server_for_a_trainer_on_the_cpu(call, tmp_path, gpu_present):
  tool(tmp_path / "tools", "nvidia-smi", "exit 0" if gpu_present else "exit 9")
  done = call(*VLLM, JAX_PLATFORMS="cpu" if gpu_present else "")
  assert done.returncode == 0, done.stderr
  assert "ready:" in done.stdout and "training from 0" in done.stdout


# Tests started in the background ignore Ctrl-C, and so would all that they start.
WITH_CTRL_C = functools.partial(
  subprocess.Popen, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_saves_at_a_signal_and_ends_its_server(call, checkout, tmp_path, number):
  workdir = long_run(tmp_path)
  run = call(*VLLM, f"--workdir={workdir}", popen=WITH_CTRL_C, JAX_PLATFORMS="cpu")
  wait_for(workdir / "started")
  time.sleep(0.5)
  run.send_signal(number)
  assert run.wait(60) == 0
  assert int((workdir / "saved").read_text()) > 0 and not running(checkout)


def test_run_that_is_killed_leaves_no_server(call, checkout, tmp_path):
  starting = tmp_path / "starting"
  script = f"""#!/bin/bash
    [ "$1" != --install-only ] || exit 0
    touch {starting}
    while true; do sleep 0.1; done"""
  (checkout / "launch" / "vllm_server.sh").write_text(script)
  run = call(*VLLM, popen=WITH_CTRL_C, JAX_PLATFORMS="cpu")
  wait_for(starting)
  run.kill()
  run.wait()
  end = time.monotonic() + 60
  while running(checkout) and time.monotonic() < end:
    time.sleep(0.1)
  assert not running(checkout)
