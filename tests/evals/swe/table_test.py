"""The figures, from files that a test writes."""

import json

import pytest

from srl_jax.errors import UserError
from srl_jax.evals.swe import table

SETTINGS = {
  "model": "m",
  "step": None,
  "style": "plain",
  "samples": 1,
  "temperature": 1.0,
  "max_prompt_tokens": 100,
  "max_tokens": 10,
  "engine": "builtin",
}


def edit(outcome, lenient=False, ambiguous=False):
  return {"path": "a.py", "outcome": outcome, "lenient": lenient, "ambiguous": ambiguous}


def repair(number, edits=(), reason="", patch="p", touches=(), files=("a.py",), cut_off=False):
  samples = [{"edits": list(edits), "cut_off": cut_off, "tokens": 10, "patch": patch}]
  return {
    "instance_id": f"o__r{number % 2}-{number}",
    "files": list(files),
    "samples": [] if reason == "too_long" else samples,
    "reason": reason,
    "patch": "" if reason else patch,
    "touches": list(touches),
  }


def judged(line, resolved, by="docker, swebench 5.0.2"):
  return {"instance_id": line["instance_id"], "resolved": resolved, "reason": "", "by": by}


REPAIRS = [
  repair(0, [edit("applied")]),
  repair(1, [edit("several", lenient=True), edit("unclosed")], touches=["conftest.py"]),
  repair(2, [edit("not_found")], reason="not_applied"),
  repair(3, [edit("no_path")], reason="cut_off", cut_off=True),
  repair(4, reason="too_long", files=()),
]


def write_lines(path, lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluation(folder, verdicts, by="docker, swebench 5.0.2"):
  """An evaluation with the repairs above, and verdicts of the first instances."""
  write_lines(folder / "oracle" / "repairs.jsonl", REPAIRS)
  lines = [judged(line, verdict, by) for line, verdict in zip(REPAIRS, verdicts)]
  write_lines(folder / "oracle" / "judged.jsonl", lines)
  (folder / "settings.json").write_text(json.dumps(SETTINGS))
  return folder


def test_table_figures_by_hand(tmp_path):
  folder = evaluation(tmp_path, [True, None, False, False])
  found = table.figures(table.read(folder / "oracle"))
  assert found["n"] == 5 and found["resolved"]["value"] == pytest.approx(0.2)
  assert found["resolved"]["se"] == pytest.approx(0.2)  # sqrt(0.2 (1 - 0.2) / (5 - 1))
  assert found["judged"] == pytest.approx(0.6)
  shares = {"well_formed": 0.6, "strict": 0.4, "applied": 0.4, "patch": 0.4, "too_long": 0.2}
  for name, share in {**shares, "cut_off": 0.2, "shown": 0.8, "tokens": 8.0}.items():
    assert found[name] == pytest.approx(share), name
  assert found["empty"] == {"not_applied": 1, "cut_off": 1, "too_long": 1}
  assert (found["flagged"], found["several"], found["ambiguous"]) == (1, 1, 0)
  assert found["by_repository"]["o/r0"] == {"n": 3, "patch": 1, "resolved": 1}
  assert found["all_found"] is None


def test_table_has_localisation_recall(tmp_path):
  write_lines(tmp_path / "repairs.jsonl", REPAIRS[:2])
  recall = [{"all_found": True, "any_found": True}, {"all_found": False, "any_found": True}]
  write_lines(tmp_path / "locations.jsonl", recall)
  found = table.figures(table.read(tmp_path))
  assert (found["all_found"], found["any_found"]) == (0.5, 1.0)
  assert found["resolved"] is None and found["judged"] == 0


def test_table_marks_all_but_the_official_harness(tmp_path):
  docker = {"by": "docker, swebench 5.0.2", "n": 500, "judged": 1.0}
  assert table.is_table_4(docker) and table.is_table_4({**docker, "by": "report a.json"})
  for other in ({"by": "sandbox on releases"}, {"by": None}, {"n": 499}, {"judged": 0.9}):
    assert not table.is_table_4({**docker, **other})
  text = table.write(evaluation(tmp_path, [True, True], by="sandbox on releases"))
  assert "not Table 4" in text and "sandbox on releases" in text
  saved = json.loads((tmp_path / "table.json").read_text())
  assert saved["figures"]["oracle"]["n"] == 5
  assert (tmp_path / "table.md").read_text().count("\n| ") >= 1


def test_table_compares_two_models_on_the_same_instances(tmp_path):
  """base resolves 1 of the 3 that both judged, srl 2; the paper's figures are beside."""
  base = evaluation(tmp_path / "base", [True, False, False, None])
  srl = evaluation(tmp_path / "srl", [True, True, False, True])
  text = table.side_by_side({"base": base, "srl": srl})
  assert "srl - base, oracle: +33.3 points" in text and "over 3 instances" in text
  assert "14.8 +- 1.6" in text and "5.8 +- 1.0" in text
  assert "not Table 4" in text


def test_table_refuses_folders_without_an_evaluation(tmp_path):
  with pytest.raises(UserError, match="no evaluation"):
    table.side_by_side({"base": tmp_path})
