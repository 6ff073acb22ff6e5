"""From rows to examples: the N-1 prompts, reasons to leave rows out, whole problems held out."""

import dataclasses
import json
import random
import sys
import types

import ml_collections
import pytest

from srl_jax.data import sources
from srl_jax.data.data_config import DataConfig
from srl_jax.data.responses import parse_response
from srl_jax.data.sources import StepExample, step_examples
from srl_jax.errors import UserError
from srl_jax.tasks.examples import example_kind

SOLUTION = "We start.\n\n1. **A**: a\n2. **B**: b\n3. **C**: c\n\nSo c."


def config(path, **changes):
  settings = {
    "source": "jsonl",
    "path": str(path),
    "split": "train",
    "fields": dict(problem="question", solution="attempt", answer="gold", id="", reasoning=""),
    "title_hint": False,
    "keep_last_step": False,
    "holdout": 0,
    "max_prompt_tokens": 1024,
  }
  return ml_collections.ConfigDict({**settings, **changes})


def load_examples(data, *, method, seed):
  """The examples of a config's group `data` for a method."""
  kind = example_kind(method, data.get("domain", "math"))
  return sources.load_examples(DataConfig.from_group(data), kind, seed=seed)


def row(k, solution=SOLUTION, **changes):
  return {"question": f"Question {k}?", "attempt": solution, "gold": k, **changes}


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
  return path


def test_load_examples_makes_two_prompts_of_three_steps():
  shared = {"problem_id": "p", "task": "srl", "problem": "Q?", "hint": None, "answer": "7"}
  assert step_examples("srl", "p", "Q?", SOLUTION, "7", title_hint=False, keep_last_step=False) == [
    StepExample(id="p/1", context=["We start."], target="1. **A**: a", **shared),
    StepExample(id="p/2", context=["We start.", "1. **A**: a"], target="2. **B**: b", **shared),
  ]


def test_load_examples_puts_reasoning_in_think_tags(tmp_path):
  path = write(tmp_path / "a.jsonl", [row(1, trace="Hm."), row(2, trace=None)])
  data = config(path)
  data.fields.reasoning = "trace"
  targets = lambda method: [e.target for e in load_examples(data, method=method, seed=0).train]
  assert targets("sft") == [f"<think>\nHm.\n</think>\n{SOLUTION}", SOLUTION]
  assert targets("one_step") == [SOLUTION] * 2
  data.fields.reasoning = "thoughts"
  with pytest.raises(ValueError, match="'thoughts'.*data.fields.reasoning"):
    targets("sft")


def test_load_examples_leaves_thoughts_out_of_the_steps(tmp_path):
  """Left out for steps and whole solutions, the reasoning for sft; counted where they are."""
  thoughts = "1. first\n2. second\n3. third\n4. fourth"
  rows = [row(1, f"<think>{thoughts}</think>\n{SOLUTION}"), row(2, f"{thoughts}</think>{SOLUTION}")]
  rows += [row(3), row(4, f"<think>{thoughts}")]
  path = write(tmp_path / "a.jsonl", rows)
  counts = {"rows": 4, "kept": 3, "thoughts": 2, "empty_solution": 1}
  for method in ("srl", "one_step", "sft"):
    examples = load_examples(config(path), method=method, seed=0)
    assert examples.counts == counts
    found = {}
    for example in examples.train:
      found.setdefault(example.problem, []).append(example)
    plain = [(e.context, e.target) for e in found["Question 3?"]]
    for k in (1, 2):
      if method == "sft":
        (example,) = found[f"Question {k}?"]
        assert parse_response(example.target) == (thoughts, SOLUTION)
      else:
        assert [(e.context, e.target) for e in found[f"Question {k}?"]] == plain


def test_load_examples_gives_title_hints_and_the_last_step():
  examples = step_examples("srl", "p", "Q?", SOLUTION, None, title_hint=True, keep_last_step=True)
  assert [(e.id, e.hint, e.target) for e in examples] == [
    ("p/1", "A", "a"),
    ("p/2", "B", "b"),
    ("p/3", "C", "c"),
  ]
  assert examples[2].context == ["We start.", "1. **A**: a", "2. **B**: b"]


def test_load_examples_gives_no_hint_without_a_title():
  examples = step_examples(
    "srl", "p", "Q?", "1. **A**\n2. b\n3. c", None, title_hint=True, keep_last_step=False
  )
  assert [(e.hint, e.target, e.context) for e in examples] == [
    (None, "1. **A**", []),
    (None, "2. b", ["1. **A**"]),
  ]


def test_load_examples_makes_no_prompt_of_fewer_than_two_steps():
  for text in ("", "Prose.", "1. **Only**: one"):
    assert step_examples("srl", "p", "Q?", text, None, title_hint=False, keep_last_step=True) == []


def test_load_examples_counts_rows_by_reason(tmp_path):
  rows = [
    row(1),
    row(2, "No steps."),
    row(3, "1. **One**: step"),
    row(4, None),
    row(5, question="  "),
    row(1, question="Question  1?\n"),
    row(6, gold=None),
  ]
  examples = load_examples(config(write(tmp_path / "a.jsonl", rows)), method="srl", seed=0)
  assert examples.counts == {
    "rows": 7,
    "no_steps": 1,
    "single_step": 1,
    "empty_solution": 1,
    "empty_problem": 1,
    "duplicate": 1,
    "kept": 2,
  }
  assert [e.answer for e in examples.train] == ["1", "1", None, None]
  assert examples.validation == []


@pytest.mark.parametrize(
  ("method", "target", "kept", "reason"),
  [
    ("one_step", SOLUTION, 3, "empty_solution"),
    ("sft", SOLUTION, 3, "empty_solution"),
    ("rlvr", "", 3, "no_answer"),
  ],
)
def test_load_examples_has_one_example_a_problem_of_other_methods(
  tmp_path, method, target, kept, reason
):
  rows = [row(1), row(2, gold=27.0), row(3, "No steps."), row(4, " ", gold=None)]
  examples = load_examples(config(write(tmp_path / "a.jsonl", rows)), method=method, seed=0)
  assert examples.counts == {"rows": 4, reason: 1, "kept": kept}
  first, second = examples.train[:2]
  task = "one_step" if method == "sft" else method
  assert (first.task, first.context, first.hint, first.target) == (task, [], None, target)
  assert (first.id, second.answer) == (first.problem_id, "27.0")


def test_load_examples_takes_an_explanation_as_answer_only_with_a_box(tmp_path):
  """Some rows of s1K have a worked solution in the column of the answers."""
  why = "Because it is so. " * 30
  rows = [row(1, gold=why), row(2, gold=why + r"So \(x=\boxed{7}\)."), row(3, gold="7")]
  examples = load_examples(config(write(tmp_path / "a.jsonl", rows)), method="rlvr", seed=0)
  assert examples.counts == {"rows": 3, "no_answer": 1, "kept": 2}


def test_load_examples_holds_out_whole_problems_in_any_order(tmp_path):
  rows = [row(k) for k in range(40)]
  rows.append(row(99, question=" Question 7? "))
  one = load_examples(config(write(tmp_path / "a.jsonl", rows), holdout=10), method="srl", seed=3)
  random.Random(0).shuffle(rows)
  two = load_examples(config(write(tmp_path / "b.jsonl", rows), holdout=10), method="srl", seed=3)
  assert {e.id for e in one.validation} == {e.id for e in two.validation}
  assert {e.id for e in one.train} == {e.id for e in two.train}
  assert len({e.problem_id for e in one.validation}) == 10
  assert len(one.validation) == 20 and len(one.train) == 60
  assert not {e.problem_id for e in one.validation} & {e.problem_id for e in one.train}
  other = load_examples(config(tmp_path / "a.jsonl", holdout=10), method="srl", seed=4)
  assert {e.id for e in other.validation} != {e.id for e in one.validation}


def test_load_examples_takes_ids_of_a_column(tmp_path):
  data = config(write(tmp_path / "a.jsonl", [row(1, name=17), row(2, name="x")]))
  data.fields.id = "name"
  examples = load_examples(data, method="srl", seed=0)
  assert [e.id for e in examples.train] == ["17/1", "17/2", "x/1", "x/2"]
  write(tmp_path / "a.jsonl", [row(1, name="x"), row(2, name="x")])
  with pytest.raises(ValueError, match=r"a.jsonl:2: the id 'x' .*a.jsonl:1"):
    load_examples(data, method="srl", seed=0)


@pytest.mark.parametrize(
  ("rows", "changes", "method", "message"),
  [
    ([row(1), {"question": "Q?"}], {}, "srl", r"a.jsonl:2: no field 'attempt', .*data.fields.solu"),
    ([row(1), {"question": "Q?"}], {}, "srl", r"the row has 'question'$"),
    ([row(1, ["a", "b"])], {}, "srl", r"a.jsonl:1: the field 'attempt' .* is a list, not a text"),
    ([row(1, "half \ud83d")], {}, "srl", r"a.jsonl:1: the field 'attempt' has half a character"),
    ([row(1)], {"holdout": 1}, "srl", r"data.holdout=1: .* 1 usable problems"),
    ([row(1, "x"), row(2, "y")], {}, "srl", r"none of 2 rows can be used \(no_steps 2\)"),
    ([row(1)], {"source": "web"}, "srl", r"data.source='web'"),
    ([row(1)], {}, "ppo", r"method: 'ppo'"),
    ([row(1)], {"path": "missing.jsonl"}, "srl", r"missing.jsonl does not exist"),
    ([], {}, "srl", r"a.jsonl is empty"),
  ],
)
def test_load_examples_names_bad_input(tmp_path, rows, changes, method, message):
  path = write(tmp_path / "a.jsonl", rows)
  with pytest.raises(ValueError, match=message):
    load_examples(config(**{"path": path, **changes}), method=method, seed=0)


def test_load_examples_of_several_solutions_of_one_problem(tmp_path):
  """All are kept for steps, under one problem_id; the same solution again is not; both counted."""
  other = SOLUTION.replace("b", "B")
  rows = [row(1), row(2), row(1, other), row(1, f" {SOLUTION}\n"), row(1, "1. x\n2. y\n3. z")]
  path = write(tmp_path / "a.jsonl", rows)
  examples = load_examples(config(path, holdout=1), method="srl", seed=0)
  assert examples.counts == {"rows": 5, "kept": 4, "further_solutions": 2, "duplicate": 1}
  sides = [{e.problem_id for e in side} for side in (examples.train, examples.validation)]
  assert len(sides[0]) == len(sides[1]) == 1 and not sides[0] & sides[1]
  both = examples.train + examples.validation
  assert len({e.id for e in both}) == len(both) == 8
  first = [e.target for e in both if e.problem == "Question 1?" and e.id.endswith("/1")]
  assert sorted(first) == ["1. **A**: a", "1. **A**: a", "1. x"]

  two = load_examples(config(path, solutions_per_problem=2), method="srl", seed=0)
  wanted = {"rows": 5, "kept": 3, "further_solutions": 1, "duplicate": 1, "surplus_solution": 1}
  assert two.counts == wanted
  one = load_examples(config(path, solutions_per_problem=1), method="srl", seed=0)
  assert one.counts == {"rows": 5, "kept": 2, "duplicate": 1, "surplus_solution": 2}
  for method in ("rlvr", "one_step", "sft"):
    whole = load_examples(config(path), method=method, seed=0)
    assert whole.counts == {"rows": 5, "kept": 2, "duplicate": 3}


@pytest.mark.parametrize("unit", ["rlvr", "srl"])
def test_load_examples_leaves_out_answers_that_nothing_equals(tmp_path, unit):
  """GSM8K's form is read, NaN is null, prose stays; RLVR leaves out what cannot be parsed."""
  worked = "Natalia sold 48/2 = 24 in May.\nShe sold 72.\n#### 72"
  golds = [worked, "#### 1,000", float("nan"), "No real solutions", "a. 3, b. 4", 5]
  rows = [{"question": f"Q{i}?", "attempt": "1. a\n2. b", "gold": g} for i, g in enumerate(golds)]
  examples = load_examples(config(write(tmp_path / "rows.jsonl", rows)), method=unit, seed=0)
  found = {e.problem: e.answer for e in examples.train}
  wanted = {"Q0?": "72", "Q1?": "1,000", "Q3?": "No real solutions", "Q5?": "5"}
  if unit == "rlvr":
    counts = {"rows": 6, "kept": 4, "no_answer": 1, "unparsed_answer": 1}
  else:
    wanted |= {"Q2?": None, "Q4?": "a. 3, b. 4"}
    counts = {"rows": 6, "kept": 6}
  assert found == wanted and examples.counts == counts


def test_load_examples_of_rlvr_needs_an_answer_column(tmp_path):
  data = config(write(tmp_path / "a.jsonl", [row(1)]))
  data.fields.answer = ""
  assert load_examples(data, method="srl", seed=0).train[0].answer is None
  with pytest.raises(ValueError, match="data.fields.answer"):
    load_examples(data, method="rlvr", seed=0)


def test_load_examples_reads_a_file_of_step_examples(tmp_path):
  rows = [row(k) for k in range(9)]
  direct = load_examples(config(write(tmp_path / "a.jsonl", rows), holdout=3), method="srl", seed=5)
  steps = [dataclasses.asdict(e) for e in (*direct.train, *direct.validation)]
  path = write(tmp_path / "steps.jsonl", steps)
  again = load_examples(config(path, holdout=3), method="srl", seed=5)
  assert (again.train, again.validation) == (direct.train, direct.validation)
  with pytest.raises(ValueError, match=r"steps.jsonl:1: task='srl', .*--method=rlvr"):
    load_examples(config(path), method="rlvr", seed=5)
  write(path, [steps[0], {k: v for k, v in steps[1].items() if k != "hint"}])
  with pytest.raises(ValueError, match="steps.jsonl:2: .*'hint'"):
    load_examples(config(path), method="srl", seed=5)


def step(**changes):
  fields = dict(id="7/1", problem_id="7", task="srl", problem="Q?", context=[], hint=None)
  return {**fields, "target": "t", "answer": None, **changes}


@pytest.mark.parametrize(
  ("changes", "method", "place"),
  [
    ({"target": " "}, "srl", "'target'"),
    ({"target": " "}, "sft", "'target'"),
    ({"task": "rlvr"}, "rlvr", "'answer'"),
    ({"target": None}, "srl", "'target'"),
    ({"problem": 3}, "srl", "'problem'"),
    ({"context": "one text"}, "srl", "'context'"),
    ({"answer": 7}, "srl", "'answer'"),
    ({"task": "one_step"}, "srl", "'one_step'"),
    ({"id": ["7/1"]}, "srl", "'id'"),
    ({"id": None}, "srl", "'id'"),
    ({"problem_id": ["7"]}, "srl", "'problem_id'"),
    ({"problem_id": {}}, "srl", "'problem_id'"),
    ({"task": ["srl"]}, "srl", "'task'"),
    ({"target": ["t"]}, "srl", "'target'"),
    ({"context": [3]}, "srl", "'context'"),
    ({"context": {"a": "b"}}, "srl", "'context'"),
    ({"context": None}, "srl", "'context'"),
    ({"hint": 7}, "srl", "'hint'"),
    ({"hint": ["a"]}, "srl", "'hint'"),
    ({"answer": ["7"]}, "srl", "'answer'"),
    ({"answer": {"a": 1}}, "rlvr", "'answer'"),
    ({"answer": True}, "rlvr", "'answer'"),
    ({"id": "7/\ud83d"}, "srl", "'id' has half a character"),
    ({"problem_id": "\udc00"}, "srl", "'problem_id' has half a character"),
    ({"problem": "Q\ud83d?"}, "srl", "'problem' has half a character"),
    ({"context": ["a", "\ud800"]}, "srl", "'context' has half a character"),
    ({"hint": "\udfff"}, "srl", "'hint' has half a character"),
    ({"target": "t\ud83d"}, "srl", "'target' has half a character"),
    ({"task": "rlvr", "answer": "7\ud83d"}, "rlvr", "'answer' has half a character"),
  ],
)
def test_load_examples_checks_step_examples_for_their_task(tmp_path, changes, method, place):
  path = write(tmp_path / "a.jsonl", [step(**{"id": "7/2"} | changes)])
  with pytest.raises(ValueError, match=rf"a.jsonl:1: .*{place}"):
    load_examples(config(path), method=method, seed=0)


def test_load_examples_refuses_an_id_of_two_step_examples(tmp_path):
  """Also where one is in train.jsonl and the other in validation.jsonl."""
  path = write(tmp_path / "a.jsonl", [step(), step(id="7/2"), step(target="u")])
  with pytest.raises(UserError, match="a.jsonl:3: .*'7/1'.*a.jsonl:1"):
    load_examples(config(path), method="srl", seed=0)
  folder = tmp_path / "prepared"
  folder.mkdir()
  settings = dict(method="srl", title_hint=False, keep_last_step=False, holdout=1, domain="math")
  (folder / "summary.json").write_text(json.dumps({"settings": settings, "counts": {}}))
  write(folder / "train.jsonl", [step()])
  write(folder / "validation.jsonl", [step(id="8/1", problem_id="8", problem="R?"), step()])
  with pytest.raises(UserError, match="validation.jsonl:2: .*train.jsonl:1"):
    load_examples(config(folder, holdout=1), method="srl", seed=0)


def test_load_examples_accepts_empty_fields_that_no_reward_needs(tmp_path):
  path = write(tmp_path / "a.jsonl", [step(task="rlvr", target="", answer="7")])
  assert load_examples(config(path), method="rlvr", seed=0).train[0].answer == "7"


def test_load_examples_of_sft_keep_their_task(tmp_path):
  """Responses are learned in reply to the prompt of their task; prepare 0.1 wrote "sft"."""
  rows = [step(id=name, problem_id=name, task=name) for name in ("srl", "rlvr", "sft")]
  examples = load_examples(config(write(tmp_path / "a.jsonl", rows)), method="sft", seed=0)
  assert [e.task for e in examples.train] == ["srl", "rlvr", "one_step"]


def test_load_examples_of_a_hub_dataset(monkeypatch):
  def load_dataset(name, *, split):
    assert (name, split) == ("org/name", "train")
    return [row(1), row(2)]

  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
  examples = load_examples(config("org/name", source="hub", holdout=1), method="srl", seed=0)
  assert (len(examples.train), len(examples.validation)) == (2, 2)


def test_load_examples_of_built_in_problems():
  examples = load_examples(
    config("hard:8", source="arithmetic", keep_last_step=True, holdout=4), method="srl", seed=0
  )
  assert len({e.problem_id for e in examples.train}) == 8
  assert len({e.problem_id for e in examples.validation}) == 4


def test_load_examples_of_real_solutions(shared):
  data = config(shared / "data" / "steps" / "mathodyssey_deepseek_v3.jsonl", holdout=60)
  data.fields = dict(problem="problem", solution="response", answer="answer", id="id", reasoning="")
  examples = load_examples(data, method="srl", seed=0)
  assert examples.counts == {"rows": 260, "no_steps": 11, "kept": 249}
  assert len({e.problem_id for e in examples.validation}) == 60
  assert len({e.problem_id for e in examples.train}) == 189
  both = examples.train + examples.validation
  assert len({e.id for e in both}) == len(both)
  assert all(e.target and e.problem and e.answer for e in both)
