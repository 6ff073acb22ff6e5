"""The paper's figures, checked against its own averages, and ours beside them."""

import json

from srl_jax.evals import paper

AVERAGES = dict(base=24.6, s1k_7b=11.7, sft_reasoning=16.6, sft_outline=16.3, rlvr_math=24.5)
AVERAGES |= dict(sft_rlvr_math=17.4, srl_math=27.6, srl_rlvr_math=28.3)
AVERAGES |= dict(srl_math_no_filter=24.7, one_step_math=25.9)
PASSES = {"greedy": {"unfinished": 0.0}, "at_2": {"unfinished": 0.5}}
SETTINGS = {"mode": "whole", "style": "think", "max_tokens": 4096}


def test_paper_figures_have_the_printed_averages():
  """A slip of a digit would show, but for rows whose printed mean is not that of their figures."""
  off = {}
  for name, figures in paper.PAPER.items():
    mean = sum(figures) / len(figures)
    if abs(mean - AVERAGES[name]) > 0.06:
      off[name] = round(mean, 1)
  assert off == {"srl_math": 26.9}


def test_side_by_side_has_ours_above_the_papers(tmp_path):
  at, greedy, missing = tmp_path / "at_2", tmp_path / "greedy", tmp_path / "missing"
  for folder, table in (
    (at, {"amc23": {"greedy": {"value": 0.5}, "avg_at_2": {"value": 0.25}, "passes": PASSES}}),
    (greedy, {"minerva_math": {"greedy": {"value": 0.3}, "passes": PASSES}}),
  ):
    folder.mkdir()
    (folder / "table.json").write_text(json.dumps({"benchmarks": table, "settings": SETTINGS}))
  rows = [("srl_math", "SRL", [at, greedy]), ("base", "base model", [missing])]
  head, *lines, foot, how, missing_how = paper.side_by_side(rows).splitlines()
  assert " ".join(head.split()) == "amc23 avg_at_2 amc23 greedy minerva_math greedy average"
  assert [line.split() for line in lines] == [
    ["SRL", "ours", "25.0", "50.0", "30.0", "35.0"],
    ["paper", "51.5", "50.0", "36.4", "26.9"],
    ["base", "model", "ours", "-", "-", "-", "-"],
    ["paper", "49.3", "50.0", "34.9", "24.6"],
  ]
  assert len({len(line) for line in [head, *lines]}) == 1 and foot.startswith("in percent")
  told = "mode whole, prompt style think, at most 4,096 tokens a response, 25.0% unfinished"
  assert how == f"  SRL: {told}" and missing_how == "  base model: not yet"


def test_side_by_side_leaves_a_column_open_without_the_papers_figure(tmp_path):
  (tmp_path / "table.json").write_text(
    json.dumps(
      {"benchmarks": {"mine": {"greedy": {"value": 1.0}, "passes": PASSES}}, "settings": SETTINGS}
    )
  )
  lines = paper.side_by_side([("base", "base", [tmp_path])]).splitlines()
  assert lines[2].split() == ["paper", "-", "24.6"]
