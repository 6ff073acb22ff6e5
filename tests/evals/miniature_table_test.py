"""The miniature's table from written evaluations and metrics: modes, pairs, seeds, compute."""

import json

import numpy as np
import pytest

from srl_jax.evals import miniature_table

K, PROBLEMS = 4, 6


@pytest.fixture
def arm(tmp_path):
  """arm(name, {mode: share right}, seeds=1) -> Arm; problem p is right where p < share."""

  def write(name, shares, seeds=1):
    evaluations, runs = {}, []
    for seed in range(seeds):
      for mode in miniature_table.MODES:
        right = lambda p, n: [{"right": p < shares[mode] * PROBLEMS}] * n  # noqa: B023
        folder = tmp_path / f"{name}-{seed}" / mode / "arithmetic"
        folder.mkdir(parents=True)
        for stem, n in (("greedy", 1), (f"sampled-{K}", K)):
          lines = [{"id": f"p{p}", "samples": right(p, n)} for p in range(PROBLEMS)]
          order = reversed(lines) if seed else lines  # only ids tell which problem it is
          (folder / f"{stem}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in order))
          (folder / f"{stem}.rollouts.jsonl").write_text("not read")
        evaluations.setdefault(seed, {})[mode] = folder.parent
      run = tmp_path / f"{name}-{seed}" / "run"
      run.mkdir()
      row = {"step": 1, "sampled_tokens": 10.0, "seconds_sample": 1.0, "seconds_update": 2.0}
      row |= {"seconds_save": 50.0}
      (run / "metrics.jsonl").write_text('{"step": 0}\n' + f"{json.dumps(row)}\n" * 3)
      runs.append([run])
    return miniature_table.Arm(name, f"<{name}>", evaluations, runs if name != "base" else [])

  return write


def test_table_has_each_arm_in_its_own_form_and_in_both(arm):
  base = arm("base", {"whole": 1 / 6, "stepwise": 2 / 6}, seeds=2)
  srl = arm("srl", {"whole": 0, "stepwise": 5 / 6}, seeds=2)
  rlvr = arm("rlvr", {"whole": 3 / 6, "stepwise": 1})
  text, data = miniature_table.table([base, rlvr, srl])
  mean = lambda mode, name: data[mode]["arms"][name]["greedy"]["mean"]
  assert [mean("whole", n) for n in ("base", "rlvr", "srl")] == pytest.approx([1 / 6, 1 / 2, 0])
  assert mean("stepwise", "srl") == mean("own", "srl") == pytest.approx(5 / 6)
  assert mean("own", "rlvr") == pytest.approx(1 / 2) and mean("own", "base") == pytest.approx(1 / 3)
  pairs = {mode: data[mode]["pairs"] for mode in ("own", "whole", "stepwise")}
  assert pairs["own"].keys() == {"srl - base", "srl - rlvr"}
  # A base is compared in the form of the other arm; srl - rlvr over the one seed that both have.
  assert pairs["own"]["srl - base"]["greedy"]["mean"] == pytest.approx(3 / 6)
  assert pairs["own"]["srl - base"]["greedy"]["by_seed"] == pytest.approx([0.5, 0.5])
  assert pairs["own"]["srl - rlvr"]["avg"]["by_seed"] == pytest.approx([2 / 6])
  assert pairs["whole"]["srl - rlvr"]["pass"]["mean"] == pytest.approx(-3 / 6)
  low, high = (pairs["own"]["srl - base"]["greedy"][end] for end in ("low", "high"))
  assert 0 < low < 0.5 < high <= 1


def test_table_text_has_every_figure_and_cost(arm):
  srl = arm("srl", {"whole": 0, "stepwise": 5 / 6}, seeds=3)
  text, data = miniature_table.table([srl])
  assert data["compute"]["srl"] == {"steps": 3, "sampled_tokens": 30, "seconds": 9}
  assert data["k"] == K and f"avg@{K}" in text
  rows = [line.split() for line in text.splitlines()]
  assert ["<srl>", "3", "3", "30", "9"] in rows
  assert ["<srl>", "(stepwise)", *("83.3", "+-", "0.0") * 3] in rows
  assert ["<srl>", *("0.0", "+-", "0.0") * 3] in rows


def test_table_pairs_arms_by_problem(arm):
  """The same mean on the same problems differs by nothing, with no width."""
  both = {"whole": 1 / 2, "stepwise": 1 / 2}
  _, data = miniature_table.table([arm("srl", both, 2), arm("srl_no_filter", both, 2)])
  found = data["own"]["pairs"]["srl - srl_no_filter"]["greedy"]
  assert (found["mean"], found["low"], found["high"]) == (0, 0, 0)
  assert np.allclose(found["by_seed"], 0)
