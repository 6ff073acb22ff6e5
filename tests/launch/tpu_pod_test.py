"""launch/tpu_pod.sh and detached.sh, with a fake gcloud that has a folder for each worker."""

import subprocess
import time

import pytest

from tests.launch.conftest import tool
from tests.launch.node_test import SAVED, long_run, starts, wait_for

GCLOUD = r"""
shift 3 # compute tpus tpu-vm
echo "$*" >> "$WORKERS/gcloud.log"
verb="$1"
if [ "$verb" = describe ]; then echo 10.0.0.1 && exit; fi
for word in "$@"; do
  case "$word" in
    --worker=all) which="0 1" ;;
    --worker=*) which="${word#*=}" ;;
    --command=*) line="${word#*=}" ;;
  esac
done
for i in $which; do
  mkdir -p "$WORKERS/$i"
  if [ "$verb" = scp ]; then
    cp "$2" "$WORKERS/$i/${3#*:}"
    tar -xzf "$WORKERS/$i/srl_jax.tar.gz" -C "$WORKERS/$i" ./.venv 2> /dev/null || true
  else
    (cd "$WORKERS/$i" && JAX_PROCESS_ID=$i bash -c "$line") || exit
  fi
done
"""


# The variables that are passed on to the workers, if they are set.
NOTHING_SET = dict.fromkeys(["PYTHON", "HF_HOME", "HF_TOKEN", "WANDB_API_KEY", "VLLM_API_KEY"], "")


@pytest.fixture
def pod(checkout, tmp_path):
  """The environment with a pod of two workers."""
  tool(tmp_path / "tools", "gcloud", GCLOUD)
  subprocess.run(["git", "init", "-q", str(checkout)], check=True)
  workers = tmp_path / "workers"
  workers.mkdir()
  return dict(SRL_TPU_NAME="pod", WORKERS=str(workers))


def test_tpu_pod_dry_run_prints_the_commands(call, checkout):
  done = call(
    *("tpu_pod.sh", "--dry-run", "configs/a.py", "--config.mesh=v5p-128", "--workdir=/w"),
    **(NOTHING_SET | dict(SRL_TPU_NAME="pod")),
  )
  gcloud = "gcloud compute tpus tpu-vm"
  archive = f"{checkout}/.cache/srl_jax.tar.gz"
  assert done.stdout.splitlines() == [
    f"{gcloud} describe pod '--format=value(networkEndpoints[0].ipAddress)'",
    f"{gcloud} scp {archive} pod:srl_jax.tar.gz --worker=all",
    f"{gcloud} ssh pod --worker=all '--command=mkdir -p srl_jax && tar -xzf srl_jax.tar.gz -C "
    "srl_jax && srl_jax/launch/detached.sh env JAX_COORDINATOR_ADDRESS=FIRST_WORKER:8476 "
    "launch/trainer.sh configs/a.py --config.mesh=v5p-128 --workdir=/w'",
    f"{gcloud} ssh pod --worker=0 '--command=srl_jax/launch/detached.sh --follow'",
  ]
  assert not (checkout / ".cache").exists()


def test_tpu_pod_runs_all_workers_and_follows_the_first(call, pod, tmp_path):
  workdir = tmp_path / "w"
  done = call("tpu_pod.sh", "configs/a.py", f"--workdir={workdir}", "--config.c=it's a", **pod)
  assert done.returncode == 0, done.stderr
  assert "training from 0" in done.stdout
  assert sorted(start[0] for start in starts(workdir)) == ["0", "1"]
  assert all("--config.c=it's a" in start for start in starts(workdir))
  assert "JAX_COORDINATOR_ADDRESS=10.0.0.1:8476" in (tmp_path / "workers/gcloud.log").read_text()


def test_tpu_pod_passes_the_environment_and_prints_no_secret(call, pod, checkout, tmp_path):
  train = checkout / "srl_jax" / "train.py"
  train.write_text(
    "import os\n" + train.read_text() + "\nprint(os.environ['HF_TOKEN'], os.environ['HF_HOME'])\n"
  )
  flags = ("configs/a.py", f"--workdir={tmp_path / 'w'}")
  passed = NOTHING_SET | dict(HF_TOKEN="it's 5ecret", HF_HOME="/mnt/hf", VLLM_API_KEY="5ecret")
  done = call("tpu_pod.sh", *flags, **(pod | passed))
  assert done.returncode == 0 and "it's 5ecret /mnt/hf" in done.stdout
  dry = call("tpu_pod.sh", "--dry-run", *flags, **(pod | passed))
  assert " HF_HOME=/mnt/hf HF_TOKEN=*** VLLM_API_KEY=*** srl_jax/launch/detached.sh" in dry.stdout
  assert "5ecret" not in dry.stdout + dry.stderr and "PYTHON" not in dry.stdout


@pytest.mark.parametrize("given", ["configs/a.py:x=1", "{root}/configs/a.py:x=1"])
def test_tpu_pod_copies_a_config_of_this_folder(call, checkout, given):
  flags = ("--dry-run", given.format(root=checkout), "--workdir=/w")
  done = call("tpu_pod.sh", *flags, SRL_TPU_NAME="pod")
  assert " launch/trainer.sh configs/a.py:x=1 --workdir=/w'" in done.stdout


@pytest.mark.parametrize("given", ["{here}/a.py:x=1", "a.py", "../a.py"])
def test_tpu_pod_refuses_a_config_outside_the_folder(call, tmp_path, given):
  here = tmp_path / "here"
  (here / "a.py").touch()
  done = call(
    "tpu_pod.sh", "--dry-run", given.format(here=here), "--workdir=/w", SRL_TPU_NAME="pod"
  )
  assert done.returncode == 2 and done.stdout == ""
  assert "a.py: " in done.stderr and done.stderr.count("\n") == 1


def test_tpu_pod_stop_saves_on_all_workers(call, pod, tmp_path):
  workdir = long_run(tmp_path)
  run = call("tpu_pod.sh", "configs/a.py", f"--workdir={workdir}", popen=subprocess.Popen, **pod)
  wait_for(workdir / "started", '["1"')
  time.sleep(0.5)
  again = call("tpu_pod.sh", "configs/a.py", f"--workdir={workdir}", **pod)
  assert again.returncode == 2 and "detached.sh --stop" in again.stderr
  assert call("tpu_pod.sh", "--stop", **pod).returncode == 0
  assert run.wait(120) == SAVED  # the exit code of --follow
  assert int((workdir / "saved").read_text()) > 0
  assert "nothing runs" in call("tpu_pod.sh", "--stop", **pod).stdout


def test_tpu_pod_run_outlives_the_following_command(call, pod, tmp_path):
  workdir = long_run(tmp_path)
  run = call("tpu_pod.sh", "configs/a.py", f"--workdir={workdir}", popen=subprocess.Popen, **pod)
  wait_for(workdir / "started", '["1"')
  run.kill()
  run.wait()
  time.sleep(0.5)
  assert "nothing runs" not in call("tpu_pod.sh", "--stop", **pod).stdout
  assert int((workdir / "saved").read_text()) > 10


@pytest.mark.parametrize("flags", [(), ("--workdir=runs/a",)])
def test_tpu_pod_refuses_a_local_workdir(call, flags):
  done = call("tpu_pod.sh", "--dry-run", "configs/a.py", *flags, SRL_TPU_NAME="pod")
  assert done.returncode == 2 and "all workers mount" in done.stderr
