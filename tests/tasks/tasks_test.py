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
def test_task_of_a_method(mine, method, domain, task):
  assert tasks.task_of(method, domain) == task
  kind = examples.example_kind(method, domain)
  assert (kind.task, kind.supervised) == (task, method == "sft")


@pytest.mark.parametrize("method", ["ppo", "swe", ""])
def test_an_unknown_method_is_refused_with_the_known_ones(mine, method):
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
def test_an_evaluation_uses_the_prompt_of_its_run_where_the_form_is_the_same(
  mine, mode, method, task
):
  assert tasks.task_of_mode(mode, method) == task


def test_all_tasks_of_whole_solutions_have_the_same_prompt():
  """One benchmark can therefore compare them."""
  whole = [task.system for task in TASKS.values() if task.unit != "steps"]
  assert len(whole) == 2 and whole[0] == whole[1]


def test_check_accepts_what_a_config_file_adds(mine, monkeypatch):
  config = quickstart.get_config()
  config.method, config.reward.similarity = mine, "words"
  with pytest.raises(ValueError, match=r"reward\.similarity: 'words'"):
    config_lib.check(config)
  monkeypatch.setitem(SIMILARITIES, "words", lambda pairs: [0.0] * len(pairs))
  config_lib.check(config)


def test_examples_of_an_unknown_task_are_refused(tmp_path):
  path = tmp_path / "a.jsonl"
  row = '{"id": "1", "problem_id": "1", "task": "nosuch", "problem": "Q", "context": [],'
  path.write_text(row + ' "hint": null, "target": "t", "answer": null}\n')
  config = quickstart.get_config()
  config.data.source, config.data.path, config.data.holdout = "jsonl", str(path), 0
  for method in ("srl", "sft"):  # sft accepts examples of any known task
    config.method = method
    with pytest.raises(ValueError, match="'nosuch'"):
      examples.load_examples(config)
