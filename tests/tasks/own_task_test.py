"""A user's own task: the config file of docs/rewards.md, word for word, outside the repository."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from srl_jax.data import arithmetic

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The document's config is for a 7B model on eight H100s.
SMALL = {
  "model": ROOT / "configs" / "miniature",
  "mesh": "cpu",
  "dtype": "float32",
  "data.max_prompt_tokens": 96,
  "rollout.max_tokens": 32,
  "rollout.width": 8,
  "rollout.samples": 4,
  "batch.prompts": 2,
  "batch.tokens_per_device": 512,
  "algorithm.max_rounds": 1,
  "train.steps": 2,
  "log.tensorboard": False,
}


def section() -> str:
  page = (ROOT / "docs" / "rewards.md").read_text("utf-8")
  return page.partition("## Your own reward\n")[2].partition("\n## ")[0]


def sums() -> list[dict]:
  """Step examples of easy sums, on which the miniature keeps the format."""
  rows = []
  for problem in arithmetic.problems("train", 6, steps=2, digits=1):
    row = {"id": f"{problem.id}/1", "problem_id": problem.id, "task": "translate"}
    row |= {"problem": problem.text, "context": [], "hint": None, "answer": None}
    rows.append(row | {"target": problem.steps[0]})
  return rows


def shared_words(action: str, target: str) -> int:
  return len(set(action.split()) & set(target.split()))


pytestmark = pytest.mark.integration  # a run of its own


def test_document_has_a_step_example_of_its_task():
  lines = re.search(r'(?m)^    \{"id".*\n.*\}$', section())[0]
  assert json.loads(lines).keys() == sums()[0].keys()


def write_task(folder: pathlib.Path) -> None:
  """Writes the document's config file and data for it."""
  config = re.search(r"```python\n(.*?)```", section(), re.DOTALL)[1]
  assert config.count("\n") < 25
  (folder / "translate.py").write_text(config, "utf-8")
  lines = "".join(json.dumps(row) + "\n" for row in sums())
  (folder / "sentences.jsonl").write_text(lines, "utf-8")


def small_flags() -> list[str]:
  return [f"--config.{key}={value}" for key, value in SMALL.items()]


def test_document_config_trains_its_own_task(tmp_path):
  write_task(tmp_path)
  command = [sys.executable, "-m", "srl_jax.train", "--config=translate.py", "--workdir=run"]
  env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
  done = subprocess.run(
    [*command, *small_flags()], cwd=tmp_path, env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  groups = []
  for path in sorted((tmp_path / "run" / "rollouts").glob("*.jsonl")):
    groups += [json.loads(line) for line in path.read_text("utf-8").splitlines()]
  assert groups
  rewards = []
  for group in groups:
    for failure, action, reward in zip(group["failures"], group["actions"], group["rewards"]):
      expected = -1.0 if failure else shared_words(action, group["target"])
      assert abs(reward - expected) < 1e-6
      rewards.append(reward)
  assert max(rewards) > 0  # some responses have the format
