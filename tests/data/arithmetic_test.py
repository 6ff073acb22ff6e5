"""The built-in family: right by plain arithmetic, disjoint sets, and the same sets for ever."""

import re

import pytest

from srl_jax.data import arithmetic
from srl_jax.data.data_config import DataConfig
from srl_jax.tasks.examples import example_kind

SPLITS = ("train", "calibration", "selection", "test")


def data_config(**changed):
  data = {"source": "arithmetic", "path": "hard", "split": "train", "holdout": 3}
  data |= {"keep_last_step": True, "title_hint": False}
  return DataConfig(**data | changed)


def load(data, method, seed):
  return arithmetic.load(data, example_kind(method), seed=seed)


def test_problems_reasoned_responses_think_first():
  (example,) = load(data_config(path="reasoned:1"), "sft", seed=0).train
  problem = arithmetic.problems("train", 1)[0]
  monologue, solution = example.target.removeprefix("<think>").split("</think>\n")
  assert solution.split("\n") == problem.steps and example.task == "one_step"
  turns = [turn.removeprefix("<think>").split("</think>")[0] for turn in problem.turns]
  assert monologue.split("\n") == turns
  with pytest.raises(ValueError, match="data.path='reasoned'"):
    load(data_config(path="reasoned"), "rlvr", seed=0)


def test_problems_keep_their_first_test_problem():
  problem = arithmetic.problems("test", 1)[0]
  assert (
    problem.text == "Start with 70. Add 28. Subtract 34. Subtract 35. Subtract 10. Add 37. Add 43."
  )
  assert problem.turns == [
    "<think>0+8=8;7+2=9</think>1. **Add 28**: 98",
    "<think>8-4=4;9-3=6</think>2. **Subtract 34**: 64",
    "<think>4-5=9b;6-3-b=2</think>3. **Subtract 35**: 29",
    "<think>9-0=9;2-1=1</think>4. **Subtract 10**: 19",
    "<think>9+7=6c;1+3+c=5</think>5. **Add 37**: 56",
    r"<think>6+3=9;5+4=9</think>6. **Add 43**: \boxed{99}",
  ]
  assert problem.answer == "99"


@pytest.mark.parametrize("steps, digits", [(6, 2), (3, 2), (3, 1)])
def test_problems_have_right_solutions(steps, digits):
  low, high = {1: (1, 9), 2: (10, 99)}[digits]
  for problem in arithmetic.problems("train", 500, steps=steps, digits=digits):
    value = int(re.match(r"Start with (\d+)\.", problem.text)[1])
    moves = re.findall(r"(Add|Subtract) (\d+)\.", problem.text)
    assert len(moves) == len(problem.steps) == len(problem.turns) == steps
    for k, ((verb, term), step, turn) in enumerate(zip(moves, problem.steps, problem.turns), 1):
      before, value = value, value + int(term) if verb == "Add" else value - int(term)
      assert low <= int(term) <= high and low <= value <= high
      shown = value if k < steps else rf"\boxed{{{value}}}"
      assert step == f"{k}. **{verb} {term}**: {shown}"
      monologue, action = turn.removeprefix("<think>").split("</think>")
      assert action == step
      check_scratch_work(monologue, before, value)
    assert problem.answer == str(value)


def check_scratch_work(monologue: str, before: int, after: int):
  """Each column, with its carry or borrow, must be a true equation and give the next digit."""
  columns, over = monologue.split(";"), 0
  assert len(columns) == len(str(before))
  for place, column in enumerate(columns):
    a, sign, b, carried, total, carries = re.fullmatch(
      r"(\d)([+-])(\d)([+-][cb])?=(\d)([cb]?)", column
    ).groups()
    assert (carried is not None) == (over == 1)
    exact = int(a) + (int(b) + over) * (1 if sign == "+" else -1)
    over = int(carries != "")
    assert exact == int(total) + 10 * over * (1 if sign == "+" else -1)
    assert int(a) == before // 10**place % 10 and int(total) == after // 10**place % 10
  assert over == 0


def test_problems_of_splits_are_disjoint_prefixes_of_longer_draws():
  sets = {split: arithmetic.problems(split, 400) for split in SPLITS}
  texts = {split: {problem.text for problem in found} for split, found in sets.items()}
  assert all(len(found) == 400 for found in texts.values())
  assert len(set.union(*texts.values())) == 1600
  assert arithmetic.problems("test", 50) == sets["test"][:50]
  for split, found in texts.items():
    assert {arithmetic.split_of(text) for text in found} == {split}


def test_problems_of_another_seed_differ():
  first = {problem.text for problem in arithmetic.problems("train", 200)}
  second = {problem.text for problem in arithmetic.problems("train", 200, seed=1)}
  assert not first & second
  assert {arithmetic.split_of(text) for text in second} == {"train"}


def test_problems_refuses_what_it_cannot_draw():
  with pytest.raises(ValueError, match="'validation'"):
    arithmetic.problems("validation", 1)
  with pytest.raises(ValueError, match="1000 .* 1 steps and 1 digits"):
    arithmetic.problems("train", 1000, steps=1, digits=1)


def test_load_examples_srl_has_the_steps_with_their_context():
  examples = load(data_config(), "srl", seed=0)
  assert (len(examples.train), len(examples.validation)) == (600, 18)
  assert examples.counts == {"rows": 103, "kept": 103}
  problem = arithmetic.problems("train", 1)[0]
  for k, example in enumerate(examples.train[:6]):
    assert (example.context, example.target) == (problem.steps[:k], problem.steps[k])
    assert (example.problem, example.answer) == (problem.text, problem.answer)
    assert (example.id, example.task, example.hint) == (f"train-0/{k + 1}", "srl", None)
  assert {arithmetic.split_of(e.problem) for e in examples.train} == {"train"}
  assert {arithmetic.split_of(e.problem) for e in examples.validation} == {"selection"}
  assert load(data_config(), "srl", seed=1) == examples  # one data set for every run


def test_load_examples_srl_leaves_out_the_last_step_and_gives_hints():
  data = data_config(path="hard:2", keep_last_step=False, title_hint=True)
  examples = load(data, "srl", seed=0).train
  problem = arithmetic.problems("train", 1)[0]
  assert len(examples) == 10
  for example, step in zip(examples[:5], problem.steps):
    assert f"{example.hint}**: {example.target}" == step.split(". **")[1]


@pytest.mark.parametrize("method", ["one_step", "rlvr", "sft"])
def test_load_examples_has_one_example_a_problem_of_whole_solutions(method):
  examples = load(data_config(path="hard:5"), method, seed=0)
  found = arithmetic.problems("train", 5)
  assert [e.problem for e in examples.train] == [p.text for p in found]
  for example, problem in zip(examples.train, found):
    task = "one_step" if method == "sft" else method
    assert (example.task, example.context, example.answer) == (task, [], problem.answer)
    assert example.target == ("" if method == "rlvr" else "\n".join(problem.steps))


def test_load_examples_warm_up_has_both_forms_of_its_split():
  examples = load(data_config(path="mix:2000"), "sft", seed=0)
  assert len(examples.train) == 2000 and len(examples.validation) == 18
  assert {arithmetic.split_of(e.problem) for e in examples.train} == {"train"}
  assert {arithmetic.split_of(e.problem) for e in examples.validation} == {"calibration"}
  whole = [e for e in examples.train if e.task == "one_step"]
  assert 0.5 < len(whole) / 2000 / arithmetic.WHOLE_SHARE < 1.5
  for example in examples.train:
    outside = re.sub(r"<think>.*?</think>", "", example.target)
    count = example.problem.count(". ")
    assert outside.count("**: ") == (count if example.task == "one_step" else 1)
    last = example.task == "one_step" or len(example.context) == count - 1
    assert outside.endswith(f"\\boxed{{{example.answer}}}") == last
  assert examples.train != load(data_config(path="mix:2000"), "sft", seed=1).train


def test_load_examples_refuses_unknown_problems():
  with pytest.raises(ValueError, match="data.path='hard:0'"):
    load(data_config(path="hard:0"), "srl", seed=0)
  with pytest.raises(ValueError, match="method='sft', not 'srl'"):
    load(data_config(path="mix"), "srl", seed=0)
  with pytest.raises(ValueError, match="data.split='dev'"):
    load(data_config(split="dev"), "srl", seed=0)
  with pytest.raises(ValueError, match="'grpo'"):
    load(data_config(), "grpo", seed=0)
