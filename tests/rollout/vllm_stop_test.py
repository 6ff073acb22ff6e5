"""SIGTERM and Ctrl-C end a run within seconds while its server does not answer.

The run and the signal are real; the server is a fake one that hangs in one of its routes.
"""

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
  *("--config.eval.mode=off", "--config.eval.benchmark=", "--config.rollout.engine=vllm"),
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", CASES)
def test_a_stop_is_heard_while_a_server_hangs(tmp_path, name, number):
  route, n, stepped = CASES[name]
  server, workdir = Hanging(route, n), tmp_path / "run"
  command = [sys.executable, "-m", "srl_jax.train", *FLAGS, f"--workdir={workdir}"]
  command += [f"--config.rollout.servers={server.url}", f"--config.rollout.weights_root={tmp_path}"]
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
  with (tmp_path / "log").open("w") as log:
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
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
  assert f"stopped by {number.name}; saved" in said() and "Traceback" not in said()
  assert not list(tmp_path.glob("srl_jax-*"))  # the weights' files are gone
  if stepped:
    checkpoints = Checkpoints(workdir)
    assert checkpoints.steps() == [1]
    checkpoints.close()
    assert (workdir / "metrics.jsonl").read_text().count("\n") == 1
  print(f"{name}, {number.name}: {seconds:.1f} s")
