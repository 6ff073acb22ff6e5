"""The table of the miniature: each arm's figures over seeds, its compute, paired differences."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from srl_jax.data.rows import json_lines
from srl_jax.evals import paired

MODES = ("whole", "stepwise")
# The form that an arm was trained in; the base knows both.
TRAINED_IN = {"srl": "stepwise", "srl_no_filter": "stepwise", "srl_long": "stepwise"}
PAIRS = (
  ("srl", "base"),
  ("srl", "sft_reasoning"),
  ("srl", "sft_outline"),
  ("srl", "rlvr"),
  ("srl", "one_step"),
  ("srl", "srl_no_filter"),
  ("srl_rlvr", "srl"),
  ("srl_rlvr", "srl_long"),
  ("srl_rlvr", "sft_rlvr"),
)
FIGURES = ("greedy", "avg", "pass")


class Arm(NamedTuple):
  """A measured row.

  Fields: name; title; evaluations, {seed: {mode: output folder of evaluate}}; runs, for each seed
  the workdirs that its training took (none for a base).
  """

  name: str
  title: str
  evaluations: Mapping[int, Mapping[str, pathlib.Path]]
  runs: Sequence[Sequence[pathlib.Path]]


def table(arms: Sequence[Arm]) -> tuple[str, dict]:
  """(text, data) of the table.

  Modes are whole (one response for the whole solution, the paper's), stepwise (turn by turn) and
  own: each arm in the form that it was trained in last, a base in the form of what it is compared
  with (alone: stepwise).
  """
  scores = {arm.name: {mode: _scores(arm, mode) for mode in MODES} for arm in arms}
  k = next(iter(scores.values()))["whole"]["k"]
  sections, data = [_compute(arms)], {"k": k, "compute": {a.name: _cost(a) for a in arms}}
  for mode in ("own", *MODES):
    rows = {arm.name: _figures(scores[arm.name][_mode(arm.name, mode)]) for arm in arms}
    pairs = {
      f"{a} - {b}": _differences(scores[a][_mode(a, mode, b)], scores[b][_mode(b, mode, a)])
      for a, b in PAIRS
      if a in scores and b in scores
    }
    data[mode] = {
      "arms": {name: {f: found[f]._asdict() for f in FIGURES} for name, found in rows.items()},
      "pairs": {p: {f: found[f]._asdict() for f in FIGURES} for p, found in pairs.items()},
    }
    sections.append(_section(mode, arms, rows, pairs, k))
  return "\n\n".join(sections), data


def _mode(name: str, mode: str, other: str = "") -> str:
  """The mode in which an arm is measured; `other` is what a base is compared with."""
  if mode != "own":
    return mode
  if name == "base":
    return TRAINED_IN.get(other, "whole") if other else "stepwise"
  return TRAINED_IN.get(name, "whole")


def _scores(arm: Arm, mode: str) -> dict:
  """greedy, avg and pass as scores_sp of an arm's seeds, the seeds, and k."""
  found, k = {figure: [] for figure in FIGURES}, 0
  for folders in arm.evaluations.values():
    folder = folders[mode] / "arithmetic"
    (sampled,) = folder.glob("sampled-*[0-9].jsonl")
    k = int(sampled.stem.partition("-")[2])
    found["greedy"].append(_right(folder / "greedy.jsonl").mean(axis=1))
    right_pk = _right(sampled)
    found["avg"].append(right_pk.mean(axis=1))
    found["pass"].append(right_pk.any(axis=1))
  return {figure: np.array(rows, float) for figure, rows in found.items()} | {"k": k}


def _right(path: pathlib.Path) -> np.ndarray:
  """right_pk: which samples of each problem are right; problems in the order of their ids."""
  lines = sorted((row for _, row in json_lines(path)), key=lambda row: row["id"])
  return np.array([[sample["right"] for sample in line["samples"]] for line in lines])


def _figures(scores: dict) -> dict[str, paired.Summary]:
  return {figure: paired.summary(scores[figure]) for figure in FIGURES}


def _differences(a: dict, b: dict) -> dict[str, paired.Difference]:
  """Over the seeds that both arms have."""
  s = min(len(a["greedy"]), len(b["greedy"]))
  return {figure: paired.difference(a[figure][:s], b[figure][:s]) for figure in FIGURES}


def _cost(arm: Arm) -> dict[str, float]:
  """Means over seeds of what an arm's trainings took, all stages together."""
  sums = []
  for runs in arm.runs:
    rows = [row for run in runs for _, row in json_lines(run / "metrics.jsonl")]
    total = lambda key: sum(row.get(key, 0.0) for row in rows)  # noqa: B023
    parts = ("seconds_sample", "seconds_reward", "seconds_update", "seconds_sync")
    sums.append((len(rows), total("sampled_tokens"), sum(map(total, parts))))
  steps, tokens, seconds = np.mean(sums, axis=0) if sums else (0, 0, 0)
  return {"steps": float(steps), "sampled_tokens": float(tokens), "seconds": float(seconds)}


def _compute(arms: Sequence[Arm]) -> str:
  lines = [["training, mean of the seeds", "seeds", "steps", "sampled tokens", "seconds"]]
  for arm in arms:
    cost = _cost(arm)
    numbers = (f"{cost[key]:,.0f}" for key in ("steps", "sampled_tokens", "seconds"))
    lines.append([arm.title, str(len(arm.evaluations)), *numbers])
  return _aligned(lines)


def _section(mode, arms, rows, pairs, k) -> str:
  what = {
    "own": "own: each arm in the form that it was trained in last",
    "whole": "whole: one response for the whole solution, as in the paper",
    "stepwise": "stepwise: turn by turn, monologues dropped",
  }[mode]
  titles = {arm.name: arm.title for arm in arms}
  lines = [[what, "greedy", f"avg@{k}", f"pass@{k}"]]
  for name, found in rows.items():
    title = f"{titles[name]} ({_mode(name, mode)})" if mode == "own" else titles[name]
    lines.append([title, *(_summary(found[figure]) for figure in FIGURES)])
  lines += [[""] * 4, ["differences, with 95 % intervals", *lines[0][1:]]]
  for pair, found in pairs.items():
    a, b = (titles[name] for name in pair.split(" - "))
    lines.append([f"{a} - {b}", *(_difference(found[figure]) for figure in FIGURES)])
  return _aligned(lines)


def _summary(found: paired.Summary) -> str:
  spread = "" if found.spread is None else f" +- {100 * found.spread:.1f}"
  return f"{100 * found.mean:.1f}{spread}"


def _difference(found: paired.Difference) -> str:
  return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*lines)]
  return "\n".join(
    "  ".join(
      [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]
    ).rstrip()
    for line in lines
  )
