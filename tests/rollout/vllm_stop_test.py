"""SIGTERM and Ctrl-C end a run within seconds while its server does not answer.

The run and the signal are real; the server is a fake one that hangs in one of its routes.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from srl_jax.learner.checkpoint import Checkpoints
from srl_jax.policy.weights import load_hf
from tests.rollout.vllm_client_test import FakeServer

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
MINIATURE = ROOT / "configs" / "miniature"
SECONDS = 5.0
FLAGS = [
  "--config=configs/quickstart.py:steps=6",
  *("--config.batch.prompts=2", "--config.rollout.samples=2", "--config.algorithm.max_rounds=1"),
  *("--config.data.path=hard:20", "--config.data.holdout=2", "--config.log.tensorboard=False"),
  *(
    "--config.train.eval_every=0",
    "--config.eval.mode=off",
    "--config.eval.benchmark=",
    "--config.rollout.engine=vllm",
  ),
]


class Hanging(FakeServer):
  """Hangs in the n-th request to a route, and in all after it."""

  def __init__(self, route, n):
    super().__init__(load_hf(MINIATURE)[1])
    self.route, self.left = route, n
    self.hangs, self.ended = threading.Event(), threading.Event()

  def handle(self, path, body):
    if path == self.route:
      self.left -= 1
      if self.left <= 0:
        self.hangs.set()
        self.ended.wait(60)
        return None
    return super().handle(path, body)

  def close(self):
    self.ended.set()
    self.http.shutdown()
    self.http.server_close()


CASES = {  # route, the request of it that hangs, whether a step has been made by then
  "at the start": ("/health", 1, False),
  "its settings": ("/server_info", 1, False),
  "the first push": ("/update_weights", 1, False),
  "the first check": ("/inference/v1/generate", 1, False),
  "the first responses": ("/inference/v1/generate", 4, False),  # a check has three requests
  "the second push": ("/update_weights", 2, True),
  "the pause of the second push": ("/pause", 2, True),
}


def begin(server, tmp_path):
  """Starts the run in a new process, with its output in tmp_path/log."""
  command = [sys.executable, "-m", "srl_jax.train", *FLAGS, f"--workdir={tmp_path / 'run'}"]
  command += [f"--config.rollout.servers={server.url}", f"--config.rollout.weights_root={tmp_path}"]
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
  with (tmp_path / "log").open("w") as log:
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def saved_steps(tmp_path):
  checkpoints = Checkpoints(tmp_path / "run")
  steps = checkpoints.steps()
  checkpoints.close()
  return steps


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", CASES)
def test_run_stops_while_a_server_hangs(tmp_path, name, number):
  route, n, stepped = CASES[name]
  server = Hanging(route, n)
  run = begin(server, tmp_path)
  said = lambda: (tmp_path / "log").read_text()
  try:
    deadline = time.monotonic() + 200
    while not server.hangs.wait(0.1):
      assert run.poll() is None and time.monotonic() < deadline, said()
    time.sleep(0.5)
    begun = time.monotonic()
    run.send_signal(number)
    assert run.wait(60) == 0, said()
    seconds = time.monotonic() - begun
  finally:
    run.kill()
    server.close()
  assert seconds < SECONDS, said()
  assert number.name in said() and "Traceback" not in said()
  assert not list(tmp_path.glob("srl_jax-*"))  # the weights' files are gone
  if stepped:
    assert saved_steps(tmp_path) == [1]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 1
  print(f"{name}, {number.name}: {seconds:.1f} s")


class Refusing(FakeServer):
  """Answers with a status from the n-th request for responses on, `times` times."""

  def __init__(self, status, n, times):
    super().__init__(load_hf(MINIATURE)[1])
    self.status, self.left, self.times = status, n, times

  def handle(self, path, body):
    if path == "/inference/v1/generate" and not body["sampling_params"]["logprobs"]:
      self.left -= 1
      if self.left < 1 and self.times > 0:
        self.times -= 1
        return self.status, {"error": {"message": "no"}}
    return super().handle(path, body)


@pytest.mark.parametrize("status, times, code", [(404, 1, 0), (400, 1, os.EX_TEMPFAIL)])
def test_run_saves_when_a_later_step_is_refused(tmp_path, status, times, code):
  """A request is repeated and counted after a 404; a 400 ends the run with its steps saved."""
  server = Refusing(status, 5, times)  # a step has two requests
  run = begin(server, tmp_path)
  try:
    assert run.wait(200) == code, (tmp_path / "log").read_text()
  finally:
    run.kill()
    server.http.shutdown()
    server.http.server_close()
  said = (tmp_path / "log").read_text()
  assert "Traceback" not in said
  rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
  if code:
    assert "400: no" in said and saved_steps(tmp_path) == [2]
  else:
    assert [row.get("groups_failed", 0) for row in rows] == [0, 0, 1, 0, 0, 0]
