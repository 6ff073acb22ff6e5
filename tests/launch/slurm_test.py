"""launch/slurm.sh, with srun, sbatch and scontrol that start the steps on this machine."""

import shlex
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import tool
from tests.launch.node_test import SERVERS_ARE_AWAY, long_run, running, starts, wait_for

SAVED, AWAY = 75, 69

# As srun does: one process on each node of the list, the worst exit code; SIGTERM kills them all.
SRUN = r"""
echo "$*" >> "$TOOLS/srun.log"
pids=() nodes=()
while [[ "$1" == --* ]]; do
  [[ "$1" == --job-name=* ]] && echo $$ > "$TOOLS/${1#*=}.step"
  [[ "$1" == --nodelist=* ]] && IFS=, read -ra nodes <<< "${1#*=}"
  shift
done
trap 'kill -KILL "${pids[@]}"' TERM
trap 'kill -TERM "${pids[@]}"' USR2 # from our scancel
for i in "${!nodes[@]}"; do
  SLURM_PROCID=$i SLURM_NTASKS=${#nodes[@]} SLURMD_NODENAME=${nodes[i]} "$@" &
  pids+=($!)
done
worst=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2> /dev/null; do wait "$pid" || true; done
  wait "$pid" || { code=$?; ((code > worst)) && worst=$code; }
done
exit "$worst"
"""

SQUEUE = r"""
case "$*" in
  *%T) echo "${STATE:-RUNNING}" ;;
  *) printf '%s\n' "17.0 servers" "17.1 trainer" "17.batch batch" ;;
esac
"""


@pytest.fixture
def cluster(tmp_path):
  """The environment of a job on the nodes a1, a2 and a3."""
  tools = tmp_path / "tools"
  tool(tools, "srun", SRUN)
  tool(tools, "sbatch", 'printf "%s\\n" "$SRL_ROOT" "$@" > "$TOOLS/sbatch.log"')
  tool(tools, "squeue", SQUEUE)
  tool(
    tools,
    "scancel",
    '[ "$2" = 17.0 ] && name=servers || name=trainer; kill -USR2 "$(cat "$TOOLS/$name.step")"',
  )
  tool(
    tools, "scontrol", 'if [ "$1" = requeue ]; then echo "$2" > "$TOOLS/requeued";'
    ' else printf "a%s\\n" 1 2 3; fi'
  )  # fmt: skip
  return dict(TOOLS=str(tools), SRL_TRAINER_NODES="2", SRL_SERVER_NODES="1", SRL_CARDS_PER_NODE="2")


@pytest.fixture
def job(cluster, checkout):
  """The same, inside the job."""
  return cluster | dict(SLURM_JOB_ID="17", SLURM_JOB_NODELIST="a[1-3]", SRL_ROOT=str(checkout))


def test_slurm_submits_with_a_signal_before_the_limit(call, cluster, checkout, tmp_path):
  assert call("slurm.sh", "configs/a.py", "--config.c=a b", **cluster).returncode == 0
  root, *arguments = (tmp_path / "tools" / "sbatch.log").read_text().splitlines()
  assert root == str(checkout)
  assert arguments[-3:] == [f"{checkout}/launch/slurm.sh", "configs/a.py", "--config.c=a b"]
  for flag in ("--nodes=3", "--gpus-per-node=2", "--mem=0", "--requeue", "--signal=B:USR1@600"):
    assert flag in arguments


def test_slurm_dry_run_prints_job_and_steps(call, cluster, checkout, tmp_path):
  done = call("slurm.sh", "--dry-run", "configs/a.py", "--workdir=/w", **cluster)
  assert done.returncode == 0, done.stderr
  flags = (
    "configs/a.py --config.mesh=data=2,fsdp=2,tensor=1 --config.rollout.engine=vllm "
    "--config.rollout.weights_root=/w/weights --workdir=/w"
  )
  assert done.stdout.splitlines()[-3:] == [
    "export SRL_WEIGHTS_ROOT=/w/weights",
    "srun --job-name=servers --nodes=1 --ntasks=1 --gpus-per-node=2 --nodelist=node3 "
    f"{checkout}/launch/servers.sh 0,1 {flags}",
    "srun --job-name=trainer --nodes=2 --ntasks=2 --nodelist=node1,node2 --gpus-per-node=2 "
    f"--kill-on-bad-exit=0 --wait=120 env JAX_LOCAL_DEVICE_IDS=0,1 {checkout}/launch/trainer.sh "
    f"{flags} --config.rollout.servers=http://node3:8101,http://node3:8102",
  ]
  assert not (tmp_path / "tools" / "srun.log").exists()


def test_slurm_job_starts_what_the_dry_run_printed(call, job, tmp_path):
  workdir = tmp_path / "w"
  done = call("slurm.sh", "configs/a.py", f"--workdir={workdir}", **job)
  assert done.returncode == 0, done.stderr
  dry = call("slurm.sh", "--dry-run", "configs/a.py", f"--workdir={workdir}", **job)
  said = [shlex.split(line)[1:] for line in dry.stdout.splitlines() if line.startswith("srun")]
  started = (tmp_path / "tools" / "srun.log").read_text().splitlines()
  assert started == [" ".join(words) for words in said]
  assert len(started) == 2
  assert "--host=a3 --port=8102" in done.stdout  # servers listen under their node's name
  assert sorted(start[0] for start in starts(workdir)) == ["0", "1"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["limit", "preempted"])
def test_slurm_job_saves_and_is_queued_again(call, job, checkout, tmp_path, number):
  workdir = long_run(tmp_path)
  run = call("slurm.sh", "configs/a.py", f"--workdir={workdir}", popen=subprocess.Popen, **job)
  wait_for(workdir / "started")
  time.sleep(0.5)
  run.send_signal(number)
  assert run.wait(120) == SAVED
  assert (tmp_path / "tools" / "requeued").read_text() == "17\n"
  saved = int((workdir / "saved").read_text())
  assert saved > 0 and not running(checkout)
  (workdir / "last").write_text(str(saved + 3))
  done = call("slurm.sh", "configs/a.py", f"--workdir={workdir}", **job)
  assert done.returncode == 0 and f"training from {saved}" in done.stdout


def test_slurm_job_that_is_cancelled_is_not_queued_again(call, job, tmp_path):
  workdir = long_run(tmp_path)
  job |= dict(STATE="CANCELLED")
  run = call("slurm.sh", "configs/a.py", f"--workdir={workdir}", popen=subprocess.Popen, **job)
  wait_for(workdir / "started")
  time.sleep(0.5)
  run.send_signal(signal.SIGTERM)
  assert run.wait(120) == SAVED
  assert int((workdir / "saved").read_text()) > 0
  assert not (tmp_path / "tools" / "requeued").exists()


@pytest.mark.parametrize("restarts", [0, 20])
def test_slurm_job_without_servers_is_queued_20_times(call, job, checkout, tmp_path, restarts):
  (checkout / "srl_jax" / "train.py").write_text(SERVERS_ARE_AWAY)
  job |= dict(SLURM_RESTART_COUNT=str(restarts))
  done = call("slurm.sh", "configs/a.py", f"--workdir={tmp_path / 'w'}", **job)
  assert done.returncode == AWAY
  assert (tmp_path / "tools" / "requeued").exists() == (restarts == 0)
  assert ("error: " in done.stderr and "20" in done.stderr) == (restarts == 20)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["limit", "preempted"])
def test_slurm_job_stopped_during_set_up_starts_nothing(call, job, checkout, tmp_path, number):
  installing = tmp_path / "installing"
  server = checkout / "launch" / "vllm_server.sh"
  server.write_text(f"#!/bin/bash\ntouch {installing}\nsleep 2\n")
  run = call("slurm.sh", "configs/a.py", popen=subprocess.Popen, **job)
  wait_for(installing)
  run.send_signal(number)
  _, said = run.communicate(timeout=120)
  assert not (tmp_path / "tools" / "srun.log").exists()
  if number == signal.SIGTERM:
    assert run.returncode == SAVED and (tmp_path / "tools" / "requeued").exists()
  else:  # starting again would end the same way
    assert run.returncode == 2 and "SBATCH_TIMELIMIT" in said


def test_slurm_job_of_bad_input_is_not_queued_again(call, job, tmp_path):
  done = call("slurm.sh", "configs/a.py", f"--workdir={tmp_path / 'w'}", "--config.fail", **job)
  assert done.returncode == 2
  assert not (tmp_path / "tools" / "requeued").exists()


def test_slurm_job_ends_when_servers_cannot_start(call, job, checkout, tmp_path):
  job |= dict(SRL_VLLM_FLAGS="--broken")
  done = call("slurm.sh", "configs/a.py", f"--workdir={tmp_path / 'w'}", **job)
  assert done.returncode == 2
  assert "error: " in done.stderr and "a3" in done.stderr
  assert not running(checkout)


def test_slurm_refuses_an_allocation_of_another_size(call, job):
  job |= dict(SRL_SERVER_NODES="2")
  done = call("slurm.sh", "configs/a.py", **job)
  assert done.returncode == 2 and "3 nodes" in done.stderr


def test_slurm_without_accelerators_has_one_device_a_node(call, cluster):
  cluster |= dict(SRL_CARDS_PER_NODE="0")
  done = call("slurm.sh", "--dry-run", "configs/a.py", **cluster)
  assert "--config.mesh=data=2,fsdp=1,tensor=1 " in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
  "flags, environment, message",
  [
    ((), dict(SRL_TRAINER_NODES="0"), "SRL_TRAINER_NODES=0: has to be a whole number, 1 or more"),
    ((), dict(SRL_SERVER_NODES="0"), "SRL_SERVER_NODES=0: has to be a whole number, 1 or more"),
    ((), dict(SRL_CARDS_PER_NODE="x"), "SRL_CARDS_PER_NODE=x: has to be a whole number, 0 or more"),
    (("--config.rollout.engine=builtin",), {}, "--config.rollout.engine=builtin"),
    (("--config.rollout.servers=http://a",), {}, "--config.rollout.servers=http://a"),
  ],
)
def test_slurm_refuses_bad_settings_before_it_submits(
  call, cluster, tmp_path, flags, environment, message
):
  done = call("slurm.sh", "configs/a.py", *flags, **(cluster | environment))
  assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
  assert not (tmp_path / "tools" / "sbatch.log").exists()
