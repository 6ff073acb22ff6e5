"""Which task a method trains on, and which prompt an evaluation uses."""

import dataclasses

import pytest

from configs import quickstart
from srl_jax import config as config_lib
from srl_jax import tasks
from srl_jax.rewards import SIMILARITIES
from srl_jax.tasks import TASKS, examples


@pytest.fixture
def mine(monkeypatch):
  """A task added by a config file."""
  monkeypatch.setitem(TASKS, "mine", dataclasses.replace(TASKS["rlvr"], system="Mine."))
  return "mine"


@pytest.mark.parametrize(
  ("method", "domain", "task"),
  [
    ("srl", "math", "srl"),
    ("one_step", "math", "one_step"),
    ("rlvr", "math", "rlvr"),
    ("sft", "math", "one_step"),
    ("srl", "swe", "swe"),
    ("sft", "swe", "swe"),
    ("mine", "math", "mine"),
  ],
)
def test_task_of_method_by_hand(mine, method, domain, task):
  assert tasks.task_of(method, domain) == task
  kind = examples.example_kind(method, domain)
  assert (kind.task, kind.supervised) == (task, method == "sft")


@pytest.mark.parametrize("method", ["ppo", "swe", ""])
def test_task_of_method_refuses_an_unknown_one(mine, method):
  with pytest.raises(ValueError, match=rf"'{method}'.*srl .*mine"):
    tasks.task_of(method)


@pytest.mark.parametrize(
  ("mode", "method", "task"),
  [
    ("stepwise", "", "srl"),
    ("stepwise", "srl", "srl"),
    ("stepwise", "rlvr", "srl"),
    ("stepwise", "sft", "srl"),
    ("whole", "", "rlvr"),
    ("whole", "srl", "rlvr"),
    ("whole", "one_step", "one_step"),
    ("whole", "mine", "mine"),
    ("stepwise", "mine", "srl"),
    ("whole", "of another config file", "rlvr"),
  ],
)
def test_task_of_mode_keeps_the_runs_task_in_the_same_form(mine, mode, method, task):
  assert tasks.task_of_mode(mode, method) == task


def test_system_prompts_of_whole_solutions_are_equal():
  """So one benchmark compares them."""
  whole = [task.system for task in TASKS.values() if task.unit != "steps"]
  assert len(whole) == 2 and whole[0] == whole[1]


def test_check_accepts_tasks_that_a_config_file_adds(mine, monkeypatch):
  config = quickstart.get_config()
  config.method, config.reward.similarity = mine, "lengths"
  with pytest.raises(ValueError, match=r"reward\.similarity: 'lengths'"):
    config_lib.check(config)
  monkeypatch.setitem(SIMILARITIES, "lengths", lambda pairs: [0.0] * len(pairs))
  config_lib.check(config)


def test_load_examples_refuses_an_unknown_task(tmp_path):
  path = tmp_path / "a.jsonl"
  row = '{"id": "1", "problem_id": "1", "task": "nosuch", "problem": "Q", "context": [],'
  path.write_text(row + ' "hint": null, "target": "t", "answer": null}\n')
  config = quickstart.get_config()
  config.data.source, config.data.path, config.data.holdout = "jsonl", str(path), 0
  for method in ("srl", "sft"):  # sft accepts examples of any known task
    config.method = method
    with pytest.raises(ValueError, match="'nosuch'"):
      examples.load_examples(config)
