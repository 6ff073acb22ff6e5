r"""Benchmarks: problems from files and the hub; what counts as an answer."""

import json

import pytest

from srl_jax.data import arithmetic, rows
from srl_jax.evals import math_benchmarks as M
from srl_jax.rewards.answers import equal_pairs
from srl_jax.rollout.episodes import Episode, Question


def write(path, *lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


@pytest.mark.parametrize("name", list(M.HUB))
def test_load_benchmark_reads_real_files(shared, name):
  questions = M.load_benchmark(name, shared / "data" / "math")
  assert len(questions) == M.HUB[name].size == len({question.id for question in questions})
  assert all(equal_pairs([(question.answer, question.answer) for question in questions]))
  assert not any(question.answer.endswith(".0") for question in questions if name == "amc23")


def test_load_benchmark_has_answers_that_parse(shared):
  load = lambda name: M.load_benchmark(name, shared / "data" / "math")
  assert [question.answer for question in load("amc23")[:3]] == [
    "27",
    "36",
    "45",
  ]  # 27.0 in the file
  assert load("minerva_math")[0].answer == "1.6"  # the box of its solution
  assert load("aime24")[0].id == "aime24-60"


def test_load_benchmark_of_arithmetic():
  questions = M.load_benchmark("arithmetic:3")
  assert [question.problem for question in questions] == [
    p.text for p in arithmetic.problems("test", 3)
  ]
  assert (
    M.load_benchmark("arithmetic")[:3] == questions and len(M.load_benchmark("arithmetic")) == 200
  )


def test_load_benchmark_of_a_users_file(tmp_path):
  path = write(
    tmp_path / "mine.jsonl",
    {"question": " What is 2+2? ", "answer": 4},
    {"problem": "And 1/2?", "answer": 0.5, "unique_id": "half"},
    {"question": "And 9+9?", "answer": "9 + 9 = <<9+9=18>>18\n#### 18", "id": "gsm"},
    {"question": "And 3?", "answer": float("nan"), "solution": r"\boxed{3}", "id": "nan"},
    {"problem": "And 6*7?", "solution": r"\boxed{41}, no, \boxed{42}.", "id": 7, "answer": None},
  )
  assert M.benchmark_name(path) == "mine"
  assert M.load_benchmark(path) == [
    Question("mine-0", "What is 2+2?", "4"),
    Question("mine-half", "And 1/2?", "0.5"),
    Question("mine-gsm", "And 9+9?", "18"),
    Question("mine-nan", "And 3?", "3"),
    Question("mine-7", "And 6*7?", "42"),
  ]


@pytest.mark.parametrize(
  "row, complaint",
  [
    ({"answer": "1"}, r"mine.jsonl:2: no text under 'problem' or 'question'; it has answer"),
    ({"problem": "p"}, r"mine.jsonl:2: no gold answer"),
    ({"problem": "p", "solution": "no box"}, r"mine.jsonl:2: no gold answer"),
    ({"problem": "p", "answer": True}, r"mine.jsonl:2: no gold answer"),
    ({"problem": "p", "answer": float("nan")}, r"mine.jsonl:2: no gold answer"),
    ({"problem": "p", "answer": " "}, r"mine.jsonl:2: no gold answer"),
    ({"problem": "p", "answer": 1, "id": 5}, r"mine.jsonl:2: the id 'mine-5' already names .*:1"),
  ],
)
def test_load_benchmark_refuses_broken_rows(tmp_path, row, complaint):
  path = write(tmp_path / "mine.jsonl", {"problem": "a", "answer": 1, "id": 5}, row)
  with pytest.raises(ValueError, match=complaint):
    M.load_benchmark(path)


@pytest.mark.parametrize("spec", ["amc24", "arithmetic:x", "arithmetic:0", "math500:3", ""])
def test_load_benchmark_refuses_unknown_names(spec):
  with pytest.raises(ValueError, match="is unknown; use amc23"):
    M.load_benchmark(spec)


def hub(monkeypatch, found):
  """Puts rows in the hub's place; returns what was asked of it."""
  asked = []

  def hub_rows(*names):
    asked.append(names)
    yield from ((f"row {i}", row) for i, row in enumerate(found))

  monkeypatch.setattr(rows, "hub_rows", hub_rows)
  return asked


def test_load_benchmark_takes_the_year_from_the_hub(monkeypatch):
  url = "https://artofproblemsolving.com/wiki/index.php/{}_AIME_I_Problems/Problem_1"
  years = [2022] * 30 + [2023] * 30 + [2024] * 30
  found = [
    {"id": i, "problem": f"p{i}", "answer": str(i), "url": url.format(year)}
    for i, year in enumerate(years)
  ]
  asked = hub(monkeypatch, found)
  questions = M.load_benchmark("aime24")
  assert asked == [("AI-MO/aimo-validation-aime", "train")]
  assert [question.id for question in questions] == [f"aime24-{i}" for i in range(60, 90)]


def test_load_benchmark_refuses_a_hub_dataset_that_changed(monkeypatch):
  hub(monkeypatch, [{"question": "q", "answer": "1"}] * 271)
  with pytest.raises(ValueError, match="271 .*minerva_math .*272"):
    M.load_benchmark("minerva_math")


@pytest.mark.parametrize(
  "ended, answer", [("whole", "42"), ("cut_off", "42"), ("boxed", "42"), ("max_turns", None)]
)
def test_grade_takes_answers_of_finished_episodes_only(ended, answer):
  episode = Episode(Question("a", "p", "42"), 0, actions=["6 times 7 is 42"], ended=ended)
  assert M.grade([episode]) == [M.Graded(answer, answer is not None)]


def test_measure_returns_greedy_avg_and_pass(scripted, solver):
  """Problem 0 is solved by sample 0 of 4, which greedy decoding repeats; problem 1 never."""
  engine = scripted(lambda id, sample: r"\boxed{5}" if (id, sample) == ("t0", 0) else r"\boxed{6}")
  questions = [Question("t0", "p", "5"), Question("t1", "q", "5")]
  expected = {"greedy": 0.5, "avg_at_4": 0.125, "pass_at_4": 0.5}
  assert M.measure(solver(engine), questions, 4) == expected
