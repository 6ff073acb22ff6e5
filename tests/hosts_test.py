"""Two real processes with four devices each: their collectives, and runs that they share."""

import collections
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import quickstart
from srl_jax import hosts
from srl_jax.learner import optimizer
from srl_jax.learner.checkpoint import Checkpoints
from srl_jax.learner.start import saved_adapters
from srl_jax.policy.hf_files import load_config
from srl_jax.policy.model import abstract
from srl_jax.policy.sharding import make_mesh

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Two busy cores compile for minutes; only the coordination service may end a process.
PATIENT = "--xla_cpu_collective_timeout_seconds=900"
PATIENT += " --xla_cpu_collective_call_terminate_timeout_seconds=900"
PATIENT += " --xla_backend_optimization_level=0"  # most of these runs' time is compilation
GONE = re.compile("another (process of the run has|task) died")


def start(arguments, logs, processes=2):
  """Starts `python *arguments` in processes with eight devices in total; each has a log."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(8 // processes), "XLA_FLAGS": PATIENT}
  if processes > 1:
    environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
    environment["JAX_NUM_PROCESSES"] = str(processes)
  return [
    subprocess.Popen(
      [sys.executable, *map(str, arguments)],
      cwd=ROOT,
      env=environment | ({"JAX_PROCESS_ID": str(i)} if processes > 1 else {}),
      stdout=log.open("w"),
      stderr=subprocess.STDOUT,
    )
    for i, log in enumerate(logs)
  ]


@pytest.fixture
def logs(tmp_path):
  return [tmp_path / "0.log", tmp_path / "1.log"]


# ---- exchange

EXCHANGE = """
import threading
import jax
import numpy as np
from jax._src import distributed
from srl_jax import hosts
from srl_jax.errors import EngineError, Stopped
from srl_jax.rollout.engine import ReplicatedSampling, Rollout

hosts.initialize()
me = jax.process_index()
count = jax.process_count()
assert count == 4 and jax.device_count() == 8
big = [me, "\\u00e4" * 1_000_000, {"x": [0.1, None]}]
assert hosts.all_gather_json(big) == [[i, *big[1:]] for i in range(count)]
for turn in range(50):
  assert hosts.all_gather_json([turn, me]) == [[turn, i] for i in range(count)]
assert hosts.local_part(range(9)) == range(me, 9, 4)
assert hosts.broadcast("first" if me == 0 else "second") == "first"
assert hosts.sum_counts({"a": 1.0} if me else {"a": 2.0, "b": 5.0}) == {"a": 5.0, "b": 5.0}
assert hosts.all_gather_lists([me, me + 10]) == [0, 10, 1, 11, 2, 12, 3, 13]
assert hosts.is_writer() == (me == 0)
found = hosts.all_gather_rows(np.arange(3 * me, dtype=np.float64))
assert [rows.tolist() for rows in found] == [list(range(3 * i)) for i in range(count)]

for gather in (hosts.all_gather_lists, lambda _, error: hosts.all_gather_rows(np.zeros(me), error)):
  for kinds, wanted in (
    ((None, EngineError, None, None), EngineError),
    ((Stopped, None, None, EngineError), Stopped),
  ):
    error = kinds[me] and kinds[me]("of process " + str(me))
    try:
      gather([], error)
    except wanted as error:
      assert str(error) == "of process " + str(kinds.index(wanted))
    else:
      raise AssertionError("nothing was raised")

# A value of several chunks, the last of them short, and one of exactly one chunk.
for size in (3 * hosts.CHUNK_BYTES + 1, hosts.CHUNK_BYTES, 0):
  data = np.full(size, me, np.uint8)
  for i, part in enumerate(hosts.all_gather_rows(data)):
    assert len(part) == size and (part == i).all()

# Each sends to the next two, beside a gather in another thread.
for turn in range(20):
  thread = threading.Thread(target=hosts.all_gather_json, args=([turn],))
  thread.start()
  parcels = {(me + i) % count: bytes([me, turn]) * 1000 for i in (1, 2)}
  senders = [(me - i) % count for i in (1, 2)]
  assert hosts.exchange(parcels, senders) == {i: bytes([i, turn]) * 1000 for i in senders}
  thread.join()
assert hosts.exchange({}, []) == {}
# The store does not grow: at most what the last collectives left.
hosts.barrier()
client = distributed.global_state.client
left = client.key_value_dir_get_bytes("srl_jax/")
assert len(left) <= 2 * (count + 1), left

class Engine:
  def sample(self, prompts, n, params):
    for prompt in hosts.local_part(prompts):
      yield [Rollout(prompt, (1, 2), (-0.5, -0.1), "stop", 3, "text")] * n

found = list(ReplicatedSampling(Engine()).sample(["a", "b", "c"], 2, None))
assert [group[0].prompt_id for group in found] == ["a", "b", "c"]
assert found[1] == [Rollout("b", (1, 2), (-0.5, -0.1), "stop", 3, "text")] * 2
print("all well")
"""


def test_processes_exchange_objects(tmp_path):
  """Values, sums, arrays, parcels, errors of one of them, and groups of rollouts."""
  logs = [tmp_path / f"{i}.log" for i in range(4)]
  for process, log in zip(start(["-c", EXCHANGE], logs, processes=4), logs):
    assert process.wait(300) == 0 and "all well" in log.read_text(), log.read_text()


KILLED = """
import sys, time
import jax
from srl_jax import hosts

hosts.initialize()
print("up", flush=True)
if jax.process_index() == int(sys.argv[1]):
  time.sleep(600)
hosts.all_gather_json(1)
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_barrier_ends_when_a_process_is_killed(logs, victim):
  """Within a minute, with the reason."""
  both = start(["-c", KILLED, victim], logs)
  while not all("up" in log.read_text() for log in logs):
    assert all(process.poll() is None for process in both), [log.read_text() for log in logs]
    time.sleep(0.1)
  both[victim].kill()
  assert both[1 - victim].wait(60) != 0
  assert GONE.search(logs[1 - victim].read_text()), logs[1 - victim].read_text()


def test_one_process_needs_no_exchange(tmp_path):
  assert (
    hosts.all_gather_json({"a": 1}) == [{"a": 1}] and hosts.broadcast(3) == 3 and hosts.is_writer()
  )
  assert hosts.sum_counts({"a": 1.0}) == {"a": 1.0} and hosts.local_part([1, 2, 3]) == [1, 2, 3]
  made = object()
  assert hosts.all_gather_lists([made]) == [made]


@pytest.mark.parametrize(
  "environment, several",
  [
    ({}, False),
    ({"JAX_COORDINATOR_ADDRESS": "host:1"}, True),
    ({"SLURM_NTASKS": "4"}, False),  # the batch script itself
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, True),
    ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "a"}, True),
  ],
)
def test_initialize_recognises_several_processes(environment, several):
  assert hosts._several(environment) == several


def test_initialize_refuses_half_an_environment(tmp_path):
  environment = os.environ | {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_PROCESS_ID": "0"}
  command = [sys.executable, "-m", "srl_jax.train", "--config=configs/quickstart.py"]
  command.append(f"--workdir={tmp_path}")
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
  assert "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID" in done.stderr


# ---- a run

STEPS = 4
FLAGS = [
  *("-m", "srl_jax.train", f"--config=configs/quickstart.py:steps={STEPS}"),
  *("--config.mesh=data=2,fsdp=4", "--config.train.save_every=2", "--config.train.eval_every=2"),
  *("--config.train.keep=3", "--config.batch.prompts=8", "--config.rollout.samples=4"),
  *("--config.rollout.width=32", "--config.algorithm.max_rounds=2", "--config.data.holdout=2"),
  *("--config.eval.benchmark=", "--config.eval.mode=off", "--config.log.tensorboard=False"),
  # As in the quickstart's warm-up. Adam normalises gradients: where they are nearly zero, rounding
  # errors move a weight by a fraction of the learning rate.
  "--config.optimizer.lr=4e-5",
]


def told(workdir):
  """Returns (lines of metrics without times, groups of each step: a process has a file of some)."""
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  clock = ("seconds_", "tokens_per_second", "mfu", "programs_")
  rows = [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows]
  groups = collections.defaultdict(list)
  for path in (workdir / "rollouts").iterdir():
    groups[path.name[:11]] += map(json.loads, path.read_text().splitlines())
  return rows, {step: sorted(found, key=lambda g: g["group"]) for step, found in groups.items()}


def final(workdir, mesh):
  """Returns (weights and moments of the last checkpoint on a mesh, the run's position)."""
  checkpoints = Checkpoints(workdir)
  tx = optimizer.make(quickstart.get_config().optimizer, STEPS)
  with jax.set_mesh(make_mesh(mesh)):
    shapes = abstract(load_config(ROOT / "configs" / "miniature"))
    found = checkpoints.restore(STEPS, shapes, jax.eval_shape(tx.init, shapes))
  checkpoints.close()
  assert jax.tree.leaves(found[0])[0].sharding.num_devices == make_mesh(mesh).size
  return list(map(np.asarray, jax.tree.leaves(found[:2]))), found[2]


def lines(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def wait_for_step(number, workdir, processes, logs, said="from the start"):
  """Until step `number` has its line and the checkpoint of step 2, written meanwhile, is whole."""
  saved = workdir / "checkpoints" / "2"
  while said not in logs[0].read_text() or lines(workdir) <= number or not saved.is_dir():
    assert all(p.poll() is None for p in processes), [log.read_text() for log in logs]
    time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The workdir of one process with eight devices."""
  folder = tmp_path_factory.mktemp("whole")
  (process,) = start([*FLAGS, f"--workdir={folder / 'run'}"], [folder / "log"], processes=1)
  assert process.wait(1800) == 0, (folder / "log").read_text()
  return folder / "run"


@pytest.mark.slow
def test_train_continues_with_fewer_processes_through_kills(whole, tmp_path):
  """4 processes, one is killed; 2, one is stopped; 1: weights, decisions and files of `whole`.

  HOSTS_TEST=8,4,2 does it with those numbers, for which two busy cores are too slow: a process
  waits 30 s for the others when it joins them.
  """
  most, fewer, last = map(int, os.environ.get("HOSTS_TEST", "4,2,1").split(","))
  workdir, logs = tmp_path / "run", [tmp_path / f"{i}.log" for i in range(most)]
  command = [*FLAGS, f"--workdir={workdir}"]
  first = start(command, logs, most)
  wait_for_step(3, workdir, first, logs)
  first[1].kill()
  begun = time.monotonic()
  for process, log in zip(first, logs):
    assert process.wait(120) != 0
    assert process is first[1] or GONE.search(log.read_text()), log.read_text()
  assert time.monotonic() - begun < 60

  second = start(command, logs[:fewer], fewer)
  wait_for_step(3, workdir, second, logs, "continued from step 2")
  second[1].send_signal(signal.SIGTERM)
  for process, log in zip(second, logs):
    assert process.wait(300) == 0, log.read_text()
  assert "stopped by SIGTERM; saved. Continue with the same command" in logs[0].read_text()
  assert "stopped by" not in logs[1].read_text()

  for process, log in zip(start(command, logs[:last], last), logs):
    assert process.wait(900) == 0, log.read_text()
    assert "full rematerialization" not in log.read_text()
  (rows, groups), (wanted_rows, wanted_groups) = told(workdir), told(whole)
  assert len(rows) == STEPS + 1 and any(row.get("grad_norm", 0) > 0 for row in rows)
  texts = lambda steps: {k: [(g["texts"], g["dropped"]) for g in v] for k, v in steps.items()}
  assert texts(groups) == texts(wanted_groups)
  for row, wanted in zip(rows, wanted_rows):
    assert row == pytest.approx(wanted, rel=1e-3, abs=1e-5)
  arrays, progress = final(workdir, "data=2,fsdp=4")
  wanted, wanted_progress = final(whole, "data=2,fsdp=4")
  for a, b in zip(arrays, wanted):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  assert progress.queue == wanted_progress.queue
  for mesh in ("fsdp=8", "data=1"):
    elsewhere, found = final(workdir, mesh)
    assert found == progress and all((a == b).all() for a, b in zip(arrays, elsewhere))
  assert json.loads((workdir / "summary.json").read_text())["steps"] == STEPS


@pytest.mark.slow
def test_two_processes_train_adapters_as_one(tmp_path, logs):
  """The same steps as one process on eight devices: metrics, adapters, the name of the base."""
  flags = [*FLAGS, "--config.lora.rank=4", "--config.lora.lr_factor=1", "--config.train.steps=2"]
  (alone,) = start([*flags, f"--workdir={tmp_path / 'one'}"], [tmp_path / "log"], processes=1)
  assert alone.wait(1800) == 0, (tmp_path / "log").read_text()
  for process, log in zip(start([*flags, f"--workdir={tmp_path / 'two'}"], logs), logs):
    assert process.wait(1800) == 0, log.read_text()
  found, architecture = [], load_config(ROOT / "configs" / "miniature")
  for workdir in (tmp_path / "one", tmp_path / "two"):
    adapters, base = saved_adapters(str(workdir), architecture)
    found.append((told(workdir)[0], list(map(np.asarray, jax.tree.leaves(adapters))), base))
  (rows, adapters, base), (wanted_rows, wanted, wanted_base) = found
  assert base == wanted_base and len(rows) == 3
  for row, other in zip(rows, wanted_rows):
    assert row == pytest.approx(other, rel=1e-3, abs=1e-5)
  for a, b in zip(adapters, wanted):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
