"""Evaluations beside the runs: which are shown, their figures, the problems that turned."""

import json

import pytest

from srl_jax.reporting import evaluations, reading
from tests.reporting.runs import write_run


def evaluation(folder, model, right, step=None, **settings):
  """Writes what srl_jax.evaluate writes: `right` is {id: whether the greedy answer is right}."""
  (folder / "amc23").mkdir(parents=True)
  about = {"model": model, "step": step, "mode": "whole", "style": "plain", "system": "secret"}
  (folder / "settings.json").write_text(json.dumps(about | settings))
  mean = sum(right.values()) / len(right)
  figures = {"pass_at_8": {"value": 0.75, "se": 0.1}, "greedy": {"value": mean, "se": None}}
  figures |= {"passes": {"greedy": {"problems": len(right), "unfinished": 0.25}}}
  table = {"settings": about, "benchmarks": {"amc23": figures}, "average": mean}
  (folder / "table.json").write_text(json.dumps(table))
  lines = []
  for id, is_right in right.items():
    sample = {"responses": ["r"], "solution": "s", "answer": "7" if is_right else "8"}
    line = {"id": id, "problem": f"problem {id}", "gold": "7", "think_opened": False}
    lines.append(json.dumps(line | {"samples": [sample | {"right": is_right}]}))
  (folder / "amc23" / "greedy.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def runs(tmp_path):
  write_run(tmp_path / "runs" / "a", {})
  evaluation(tmp_path / "runs" / "evals" / "base", "/home/x/tiny", {"1": 0, "2": 1, "3": 0})
  evaluation(tmp_path / "runs" / "evals" / "a", "runs/a", {"1": 1, "2": 0, "3": 0, "4": 1}, step=9)
  evaluation(tmp_path / "runs" / "other", "somebody/else", {"1": 1})
  return reading.read_runs([tmp_path / "runs" / "a"])


def test_evaluations_of_the_runs_and_their_models(runs):
  found = evaluations.read_evaluations(runs)
  base, trained = found["evaluations"]
  assert (base["name"], base["is_run"]) == ("base", False)
  assert (trained["name"], trained["is_run"]) == ("a", True)
  assert base["settings"]["model"] == "tiny" and "system" not in base["settings"]
  assert found["faults"] == [] and "answers" not in base


def test_figures_with_standard_errors(runs):
  _, trained = evaluations.read_evaluations(runs)["evaluations"]
  assert trained["rows"] == [
    {
      "benchmark": "amc23",
      "figures": [
        {"name": "greedy", "value": 0.5, "se": None},
        {"name": "pass@8", "value": 0.75, "se": 0.1},
      ],
      "problems": 4,
      "unfinished": 0.25,
    }
  ]


def test_problems_that_turned_right_and_wrong(runs):
  (change,) = evaluations.read_evaluations(runs)["changes"]
  assert (change["before"], change["after"], change["benchmark"]) == ("base", "a", "amc23")
  assert (change["common"], change["right"], change["wrong"]) == (3, 1, 1)
  wrong, right = change["problems"]
  assert (wrong["id"], wrong["before"], wrong["after"]) == ("2", "7", "8")
  assert (right["id"], right["before"], right["after"]) == ("1", "8", "7")


def test_damaged_evaluations_are_named(runs, tmp_path):
  (tmp_path / "runs" / "evals" / "base" / "table.json").write_text("{")
  with (tmp_path / "runs" / "evals" / "a" / "amc23" / "greedy.jsonl").open("a") as file:
    file.write('{"id": "5", "sam')
  found = evaluations.read_evaluations(runs)
  assert [evaluation["name"] for evaluation in found["evaluations"]] == ["a"]
  assert {fault.partition(":")[0] for fault in found["faults"]} == {
    "base/table.json",
    "a/amc23/greedy.jsonl",
  }


def test_the_table_of_software_engineering():
  found = {"n": 10, "resolved": {"value": 0.2, "se": 0.1}, "patch": 0.9, "cut_off": 0.1}
  rows = evaluations.rows_of({"figures": {"oracle": found, "end_to_end": {"resolved": None}}})
  assert rows[0]["benchmark"] == "oracle" and rows[0]["problems"] == 10
  assert rows[0]["figures"] == [
    {"name": "resolved", "value": 0.2, "se": 0.1},
    {"name": "patch", "value": 0.9, "se": None},
  ]
  assert rows[1]["figures"] == []
