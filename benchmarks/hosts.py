"""The work of a host between sampling and the update, against the number of hosts.

  python -m benchmarks.hosts

Real processes without a model, as many as hosts, each with 4 simulated devices, share a batch of
the paper's size: 512 prompts of 8 responses, a prompt of 1,500 and a response of 1,000 tokens on
average. Each process scores the groups that it has sampled (made-up ones), exchanges their numbers,
plans the micro-batches, exchanges token ids, packs the rows of its devices, copies them there and
writes its rollouts. Seconds are CPU seconds of a process with all its threads, so they do not
depend on how many cores the processes share. Process 0 also serves the key-value store of all.
"""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
from scipy.optimize import nnls

from benchmarks.machine import cores_and_memory
from configs import srl_math
from srl_jax import hosts
from srl_jax.data.batches import PromptQueue
from srl_jax.data.examples import StepExample
from srl_jax.learner import metrics, packing, rollouts, update
from srl_jax.learner.batch import weighed_groups
from srl_jax.learner.exchange import rows_of_process
from srl_jax.learner.log import Log
from srl_jax.policy.sharding import make_mesh, shards
from srl_jax.rollout.engine import Prompt, Rollout

COUNTS = (1, 2, 4, 8, 16, 32)
DEVICES = 4  # of a process
TURNS = 3  # the first one warms up
PROMPTS, PROMPT_TOKENS, RESPONSE_TOKENS = 2000, 1500, 1000
FORECAST = (64, 256)


class Prompts:
  """Examples with prompts of random tokens; the targets have 40 words."""

  think_opened = False

  def __init__(self):
    rng = np.random.default_rng(0)
    self.lengths = rng.lognormal(np.log(PROMPT_TOKENS) - 0.125, 0.5, PROMPTS).astype(int) + 1
    self.examples = []
    for i in range(PROMPTS):
      fields = dict(task="srl", problem="p", context=[], hint=None, answer="1")
      self.examples.append(
        StepExample(id=str(i), problem_id=str(i), target=words(rng, 40), **fields)
      )

  def prompt(self, index: int) -> Prompt:
    return Prompt(str(index), (1,) * int(min(self.lengths[index], 4096)))


def words(rng, count: int) -> str:
  return " ".join(f"w{n}" for n in rng.integers(0, 200, count))


class Engine:
  """Yields made-up rollouts; `seconds` is the CPU time of making them, which is not measured."""

  seconds = 0.0

  def sample(self, prompts, n, params):
    rng = np.random.default_rng(params.step * 1000 + jax.process_index())
    for prompt in hosts.local_part(prompts):
      begun, group = time.process_time(), []
      for length in rng.lognormal(np.log(RESPONSE_TOKENS) - 0.125, 0.5, n).astype(int) + 1:
        ids = tuple(rng.integers(0, 150_000, min(length, 4096)).tolist())
        text = f"<think>{words(rng, len(ids) - 60)}</think>\n\n{words(rng, 40)}"
        group.append(Rollout(prompt.id, ids, (-0.5,) * len(ids), "stop", 0, text))
      self.seconds += time.process_time() - begun
      yield group


class CountingClient:
  """The store's client, with the bytes that this process sends and receives."""

  def __init__(self, client):
    self.client, self.bytes = client, Counter()

  def key_value_set_bytes(self, key, value):
    self.bytes["sent"] += len(value)
    return self.client.key_value_set_bytes(key, value)

  def blocking_key_value_get_bytes(self, key, timeout):
    value = self.client.blocking_key_value_get_bytes(key, timeout)
    self.bytes["received"] += len(value)
    return value

  def key_value_delete(self, key):
    return self.client.key_value_delete(key)


def work() -> None:
  """One process: prints what a step costs it as JSON."""
  hosts.initialize()
  config = srl_math.get_config()
  prompts, engine, score = Prompts(), Engine(), Counter()
  if jax.process_count() > 1:
    client = CountingClient(hosts._client())
    hosts._client = lambda: client
  # Similarities are computed as in a run, without worker processes, whose CPU time is not seen.
  rollouts.WORKERS, score_of = 0, rollouts.score

  def timed_score(*args):
    begun = time.process_time()
    found = score_of(*args)
    score["seconds"] += time.process_time() - begun
    return found

  rollouts.score = timed_score
  run = SimpleNamespace(config=config, train_prompts=prompts, engine=engine)
  queue, found = PromptQueue(PROMPTS, 0), []
  lengths = packing.Lengths(4096, 4096, 8192, 8, RESPONSE_TOKENS + PROMPT_TOKENS / 8, 5000)
  shapes = packing.row_shapes(lengths, config.batch.tokens_per_device, "lines")
  settings = SimpleNamespace(report=False, tensorboard=False, wandb="")
  folder = pathlib.Path(os.environ["HOSTS_FOLDER"])
  log = Log(folder, settings, step=0, name="run", config={})
  with jax.set_mesh(make_mesh(f"fsdp={jax.device_count()}")):
    for turn in range(TURNS):
      hosts.barrier()
      engine.seconds, score["seconds"] = 0.0, 0.0
      before = Counter(client.bytes) if jax.process_count() > 1 else Counter()
      seconds = measure(run, queue, turn, shapes, log)
      after = client.bytes if jax.process_count() > 1 else Counter()
      seconds["sample"] -= engine.seconds + score["seconds"]
      seconds["score"] = score["seconds"]
      found.append({"seconds": seconds, "bytes": dict(Counter(after) - before)})
      hosts.barrier()
  print("RESULT", json.dumps(found[1:]), flush=True)


def measure(run, queue, turn: int, shapes, log: Log) -> dict[str, float]:
  """CPU seconds of each phase of one step."""
  seconds = {}

  @contextlib.contextmanager
  def phase(name):
    begun = time.process_time()
    yield
    seconds[name] = time.process_time() - begun

  with phase("sample"):
    batch = rollouts.sample_batch(run, queue, turn)
  with phase("plan"):
    groups = weighed_groups(batch.kept, run.config)
    plan = packing.plan(groups, shapes, shards("b"))
  with phase("pack"):
    rows = rows_of_process(plan)
  with phase("copy"):
    jax.block_until_ready(list(map(update.on_device, rows)))
  with phase("log"):
    log.write_rollouts(turn + 1, batch.groups)
    metrics.batch_metrics(batch)
    metrics.packed_share(plan)
  return seconds


def run_processes(count: int) -> list[list[dict]]:
  """What each of `count` processes has printed."""
  with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | dict(
      JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(DEVICES), HOSTS_FOLDER=folder
    )
    if count > 1:
      environment |= dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=str(count))
    free.close()
    started = []
    for i in range(count):
      own = environment | ({"JAX_PROCESS_ID": str(i)} if count > 1 else {})
      command = [sys.executable, "-m", "benchmarks.hosts", "--worker"]
      started.append(subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True))
    found = []
    try:
      for process in started:
        out, _ = process.communicate()
        if process.returncode:
          raise RuntimeError(f"a process of {count} ended with {process.returncode}")
        (line,) = [line for line in out.splitlines() if line.startswith("RESULT ")]
        found.append(json.loads(line.removeprefix("RESULT ")))
    finally:
      for process in started:
        process.kill()
  return found


PHASES = {
  "score": "rewards",
  "sample": "exchange of numbers, filter",
  "plan": "advantages, plan",
  "pack": "exchange of tokens, rows",
  "copy": "copy to the devices",
  "log": "rollouts/, metrics",
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--worker", action="store_true", help="one process of a measurement")
  parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="numbers of processes")
  given = parser.parse_args()
  if given.worker:
    return work()
  counts = list(map(int, given.counts.split(",")))
  print(f"{cores_and_memory()}; CPU seconds of a step and host\n")
  print(
    f"| hosts | {' | '.join(PHASES.values())} | without rewards | process 0 | MB sent, received |"
  )
  print("|---" * (len(PHASES) + 4) + "|")
  totals = {"host": [], "process 0": []}
  for count in counts:
    of_processes = run_processes(count)
    # Of the others, if there are any; process 0 has the store besides.
    others = sum(of_processes[1:] or of_processes, [])
    phases = {p: statistics.median(step["seconds"][p] for step in others) for p in PHASES}
    without = lambda step: sum(step["seconds"].values()) - step["seconds"]["score"]
    host = statistics.median(map(without, others))
    zero = statistics.median(map(without, of_processes[0]))
    sent, received = (
      statistics.median(step["bytes"].get(way, 0) for step in others) / 1e6
      for way in ("sent", "received")
    )
    totals["host"].append(host)
    totals["process 0"].append(zero)
    row = " | ".join(f"{value:.2f}" for value in phases.values())
    print(f"| {count} | {row} | {host:.2f} | {zero:.2f} | {sent:.1f}, {received:.1f} |", flush=True)
  # One process alone exchanges nothing, so its figure is left out of the fit.
  several = [i for i, count in enumerate(counts) if count > 1]
  if len(several) > 2:
    for name, seconds in totals.items():
      print_fit(name, [counts[i] for i in several], [seconds[i] for i in several])


def print_fit(name: str, counts: list[int], seconds: list[float]) -> None:
  """The least-squares fit fixed + shared / hosts + each hosts, no term negative, and forecasts."""
  n = np.array(counts, float)
  terms = np.stack([np.ones_like(n), 1 / n, n], axis=1)
  # Relative errors count equally.
  (fixed, shared, each), _ = nnls(terms / np.array(seconds)[:, None], np.ones(len(n)))
  worst = max(abs(terms @ (fixed, shared, each) / seconds - 1))
  forecast = ", ".join(f"{fixed + shared / m + each * m:.2f} s at {m}" for m in FORECAST)
  print(
    f"\n{name}: {fixed:.3f} + {shared:.2f} / hosts + {each:.5f} hosts (within {worst:.0%}):"
    f" {forecast} hosts"
  )


if __name__ == "__main__":
  main()
