"""Workdirs for the tests of the page, written line by line."""

import json

from srl_jax.rewards.similarity import similarity

CONFIG = {
  "version": "0.2.0",
  "method": "srl",
  "model": "/home/somebody/models/tiny",
  "seed": 0,
  "algorithm": {"std_epsilon": 0.01, "dynamic_sampling": True, "advantage_ddof": 0},
  "batch": {"prompts": 2},
  "reward": {"autojunk": False},
  "rollout": {"samples": 2, "max_tokens": 32, "servers": "http://node7:8000"},
  "train": {"steps": 4},
}


def group_line(
  actions, target="1. **Add 2**: 4", *, id="p/1", dropped=None, failures=None, **given
):
  """A line of rollouts/; rewards are the similarities unless given, -1 for a failure."""
  failures = failures or [None] * len(actions)
  rewards = []
  for action, failure in zip(actions, failures):
    rewards.append(-1.0 if failure else similarity(action, target.strip()))
  return {
    "prompt_id": id,
    "problem": "2 + 2?",
    "context": [],
    "hint": None,
    "target": target,
    "texts": [f"<think>so {i}</think>{action}" for i, action in enumerate(actions)],
    "actions": actions,
    "rewards": rewards,
    "failures": failures,
    "kept": dropped is None,
    "dropped": dropped,
  } | given


def metrics_line(step, **given):
  return {
    "step": step,
    "reward_mean": 0.1 * step,
    "sampled_tokens": 100,
    "seconds_sample": 1,
  } | given


def write_run(folder, groups_by_step, metrics=None, config=CONFIG, summary=None):
  """Writes a workdir: {step: lines of groups}, lines of metrics, config and summary."""
  (folder / "rollouts").mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config))
  lines = [metrics_line(step) for step in groups_by_step] if metrics is None else metrics
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  for step, groups in groups_by_step.items():
    text = "".join(json.dumps(group) + "\n" for group in groups)
    (folder / "rollouts" / f"step_{step:06d}.jsonl").write_text(text)
  if summary is not None:
    (folder / "summary.json").write_text(json.dumps(summary))
  return folder
