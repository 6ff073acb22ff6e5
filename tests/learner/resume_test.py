"""Runs that are killed or stopped and continued equal uninterrupted runs, bit for bit."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import quickstart, quickstart_lora
from srl_jax.learner import optimizer
from srl_jax.learner.checkpoint import Checkpoints
from srl_jax.learner.start import policy_shapes
from srl_jax.policy.hf_files import load_config
from srl_jax.policy.lora import split

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ROOT / "configs" / "miniature"
STEPS = 6
RL = [
  *("--config.train.save_every=2", "--config.train.eval_every=3", "--config.train.keep=2"),
  *("--config.batch.prompts=4", "--config.rollout.samples=4", "--config.algorithm.max_rounds=2"),
  *("--config.data.holdout=8", "--config.eval.benchmark=", "--config.eval.mode=off"),
]
FLAGS = {
  "rl": ["--config=configs/quickstart.py:steps=6", *RL],
  # The KL term needs the start's adapters again; several optimiser steps the log-probs before.
  "lora": [
    "--config=configs/quickstart_lora.py:steps=6,rank=4",
    *RL,
    *("--config.algorithm.kl=0.01", "--config.algorithm.steps_per_batch=2"),
  ],
  "sft": [
    "--config=configs/miniature_base.py",
    *("--config.train.steps=6", "--config.train.save_every=2", "--config.train.eval_every=3"),
    *("--config.train.keep=2", "--config.batch.prompts=8", "--config.data.holdout=8"),
    *("--config.data.path=mix:64", "--config.log.tensorboard=False"),
  ],
}


def begin(method, workdir):
  """Starts the run in a new process, with its output in workdir.log."""
  command = [sys.executable, "-m", "srl_jax.train", *FLAGS[method], f"--workdir={workdir}"]
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
  log = workdir.with_suffix(".log").open("a")
  return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(method, workdir):
  assert begin(method, workdir).wait(300) == 0, workdir.with_suffix(".log").read_text()


def wait_for(process, condition):
  """Until the condition holds; False if the run ended first."""
  while not condition():
    if process.poll() is not None:
      return False
    time.sleep(0.001)
  return True


def lines(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def is_saving(workdir):
  folder = workdir / "checkpoints"
  return folder.exists() and any("tmp" in name for name in os.listdir(folder))


def final(method, workdir):
  """(arrays of the last checkpoint as bytes, its queue, all scores, best step)."""
  checkpoints = Checkpoints(workdir, 2)
  assert checkpoints.steps()[-1] == STEPS
  config = {"lora": quickstart_lora}.get(method, quickstart).get_config()
  config.lora.rank = min(4, config.lora.rank)
  tx = optimizer.of_run(config, STEPS)
  shapes, _ = split(policy_shapes(config, load_config(BASE)))
  model, moments, progress = checkpoints.restore(STEPS, shapes, jax.eval_shape(tx.init, shapes))
  arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((model, moments))]
  found = arrays, progress.queue, progress.scores, checkpoints.best_step(), checkpoints.steps()
  checkpoints.close()
  return found


def written(workdir):
  """(lines of metrics without those of clocks, rollout files)."""
  metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  clock = ("seconds_", "tokens_per_second", "mfu", "programs_")
  metrics = [{k: v for k, v in row.items() if not k.startswith(clock)} for row in metrics]
  assert [row["step"] for row in metrics] == list(range(STEPS + 1))  # 0: validation before step 1
  return metrics, {path.name: path.read_text() for path in (workdir / "rollouts").iterdir()}


@pytest.fixture(scope="module", params=["rl", "lora", "sft"])
def whole(request, tmp_path_factory):
  """(method, final state, files) of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp(request.param) / "whole"
  finish(request.param, workdir)
  return request.param, final(request.param, workdir), written(workdir)


def assert_like(whole, workdir):
  method, state, files = whole
  names = ("weights and moments", "queue", "scores", "best step", "steps")
  for name, found, wanted in zip(names, final(method, workdir), state):
    assert found == wanted, name
  assert written(workdir) == files


def test_train_writes_metrics_and_a_summary(whole):
  """Otherwise equal weights would prove nothing."""
  method, _, (metrics, _) = whole
  moved = [row for row in metrics if row.get("grad_norm", 0) > 0]
  assert len(moved) >= STEPS - 2


def test_train_killed_at_any_point_continues_bit_for_bit(whole, tmp_path):
  """kill -9 during a save, right after a line of metrics, and at random moments of a step."""
  workdir, rng, killed = tmp_path / "killed", random.Random(1), 0
  saving = lambda: is_saving(workdir)
  for condition, delay in [
    (saving, 0.0),
    ("line", 0.0),
    ("line", rng.uniform(0, 0.2)),
    ("line", rng.uniform(0, 1.0)),
    (saving, 0.02),
  ]:
    if condition == "line":
      before = lines(workdir)
      wanted = lambda before=before: lines(workdir) not in (before, 0)
    else:
      wanted = condition
    process = begin(whole[0], workdir)
    if wait_for(process, wanted):
      time.sleep(delay)
      process.kill()
    killed += process.wait() == -signal.SIGKILL
  assert killed >= 3
  finish(whole[0], workdir)
  assert_like(whole, workdir)


def test_train_stopped_by_a_signal_continues_bit_for_bit(whole, tmp_path):
  """SIGTERM after step 3, which has been saved with its score."""
  workdir = tmp_path / "stopped"
  process = begin(whole[0], workdir)
  assert wait_for(process, lambda: lines(workdir) >= 4)
  process.terminate()
  log = workdir.with_suffix(".log")
  assert process.wait(120) == 0, log.read_text()
  assert "SIGTERM" in log.read_text()
  assert f"python -m srl_jax.train {FLAGS[whole[0]][0]}" in log.read_text()
  finish(whole[0], workdir)
  assert_like(whole, workdir)
