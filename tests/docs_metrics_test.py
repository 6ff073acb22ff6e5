"""docs/metrics.md documents exactly the keys that a run writes."""

import json
import pathlib
import re

import jax
import pytest

from configs import miniature_base, quickstart
from srl_jax import train
from srl_jax.data.responses import format_failure
from srl_jax.learner import metrics
from srl_jax.policy.sharding import make_mesh
from srl_jax.rollout.vllm_client import why_rejected
from srl_jax.tasks import TASKS, Score

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = {
  "model": str(ROOT / "configs" / "miniature"),
  "data.holdout": 2,
  "batch.tokens_per_device": 512,
  "rollout.width": 8,
  "train.steps": 2,
  "train.eval_every": 1,
  "eval.max_tokens": 16,
  "eval.max_turns": 1,
  "eval.samples": 2,
  "log.tensorboard": False,
}
RL = {"data.path": "hard:4", "rollout.samples": 4, "batch.prompts": 2}
RL |= {"algorithm.max_rounds": 1, "eval.benchmark": "arithmetic:2"}
SFT = {"data.path": "mix:8", "batch.prompts": 4, "init_from": "", "eval.mode": "whole"}


def documented(section: str = "") -> set[str]:
  """Returns the keys in the first column of docs/metrics.md's tables, or of one section."""
  page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
  metrics_part, _, summary_part = page.partition("\n## summary.json\n")
  keys = set()
  for line in (summary_part if section == "summary" else metrics_part).splitlines():
    if line.startswith("| `"):
      keys |= set(re.findall(r"`(\w+)`", line.split("|")[1]))
  return keys


def finish(config, values, workdir):
  """Trains; returns (keys of all lines of metrics.jsonl, summary)."""
  config.update_from_flattened_dict(SMALL | values)
  with jax.set_mesh(make_mesh("data=1")):
    summary = train.run_training(config, workdir)
  keys = set()
  for line in (workdir / "metrics.jsonl").read_text("utf-8").splitlines():
    keys |= json.loads(line).keys()
  return keys, summary


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """The files of a tiny run of reinforcement learning and of supervised fine-tuning."""
  rl = quickstart.get_config()
  if "kl" in rl.algorithm:
    rl.algorithm.kl = 0.1
  with pytest.MonkeyPatch.context() as patch:
    # On hardware with a known peak, its share is written too.
    patch.setattr(metrics, "PEAKS", {jax.devices()[0].device_kind: 1e12})
    found = finish(rl, RL, tmp_path_factory.mktemp("rl"))
  sft = miniature_base.get_config()
  return [found, finish(sft, SFT, tmp_path_factory.mktemp("sft"))]


def format_failures() -> set[str]:
  texts = ["a", "<think>a", "<think>a</think></think>b", "<think>a</think>"]
  return {format_failure(text) for text in texts} | {format_failure("a", "length")}


def reasons_of_dropped_groups() -> set[str]:
  found = {"surplus"}
  for task in TASKS.values():
    for reward, failure in ((1.0, None), (0.0, None), (-1.0, "no_open")):
      found.add(task.drop_reason([Score(reward, failure, "", "")] * 4))
  return found


def reasons_of_rejected_groups() -> set[str]:
  response = lambda end, *versions: ((1,), (0.0,), end, versions)
  groups = [response("abort", "2"), response("stop", "1", "2"), response("stop", "1")]
  return {why_rejected([group], 2, 0) for group in groups} | {"failed"}


def is_counted(key: str) -> bool:
  """Returns whether a key is written only in steps with such an event."""
  return key.startswith(("failure_", "dropped_", "groups_rejected", "groups_failed"))


def test_metrics_document_has_exactly_the_keys_of_a_run(runs):
  written = {key for key in runs[0][0] | runs[1][0] if not is_counted(key)}
  written |= {f"failure_{reason}" for reason in format_failures()}
  written |= {f"dropped_{reason}" for reason in reasons_of_dropped_groups()}
  written |= {f"groups_{reason}" for reason in reasons_of_rejected_groups()}
  keys = documented()
  if "kl" not in quickstart.get_config().algorithm:
    keys.discard("kl")
  assert keys == written


def test_counted_keys_of_a_run_are_among_those_that_can_occur(runs):
  assert {key for key in runs[0][0] if is_counted(key)} <= documented()


def test_metrics_document_has_exactly_the_keys_of_a_summary(runs):
  keys = set()
  for _, summary in runs:
    keys |= summary.keys()
    for row in ("before", "after"):
      # avg_at_8 is avg_at_2 with eval.samples=2.
      keys |= {key.replace("_2", "_8") for key in summary.get(row, {})}
  assert keys == documented("summary")
