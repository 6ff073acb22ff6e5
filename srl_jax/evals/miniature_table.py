"""The miniature's results: accuracies of each arm over seeds, its compute, paired differences."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from srl_jax.data.rows import json_lines
from srl_jax.evals import columns, paired

MODES = ("whole", "stepwise")
# The mode in which an arm was trained last; arms that are not listed were trained on whole
# solutions. The base model learnt both forms in its warm-up.
STEPWISE = ("srl", "srl_no_filter", "srl_long", "srl_words", "srl_edit", "srl_chrf")
TRAINED_IN = dict.fromkeys(STEPWISE, "stepwise")
# The differences that the table prints, those of the paper's comparisons.
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
  *(("srl_words", "srl"), ("srl_edit", "srl"), ("srl_chrf", "srl")),
)
FIGURES = ("greedy", "avg", "pass")


class Arm(NamedTuple):
  """One arm of the experiment, a row of the table.

  Attributes:
    name: short name, used in TRAINED_IN and PAIRS.
    title: printed name.
    evaluations: {seed: {mode: output folder of evaluate}}.
    runs: for each seed, the workdirs of its training stages (empty for a base model).
  """

  name: str
  title: str
  evaluations: Mapping[int, Mapping[str, pathlib.Path]]
  runs: Sequence[Sequence[pathlib.Path]]


def table(arms: Sequence[Arm]) -> tuple[str, dict]:
  """Returns the table as (text, data).

  It has each figure in three modes: whole (one response with the whole solution, as in the paper),
  stepwise (turn by turn) and own: each arm in the form that it was trained in last, and a base
  model in the form of the arm that it is compared with (by itself: stepwise).
  """
  scores = {}
  for arm in arms:
    scores[arm.name] = {mode: _scores(arm, mode) for mode in MODES}
  # All arms were evaluated with the same k.
  k = next(iter(scores.values()))["whole"]["k"]
  sections = [_compute(arms)]
  data = {"k": k, "compute": {arm.name: _cost(arm) for arm in arms}}
  for mode in ("own", *MODES):
    rows = {name: _figures(by_mode[_mode(name, mode)]) for name, by_mode in scores.items()}
    pairs = _pairs(scores, mode)
    data[mode] = {"arms": _as_data(rows), "pairs": _as_data(pairs)}
    sections.append(_section(mode, arms, rows, pairs, k))
  return "\n\n".join(sections), data


def _pairs(scores: dict, mode: str) -> dict[str, dict[str, paired.Difference]]:
  """Returns {"a - b": {figure: difference}} for the PAIRS of which both arms were measured."""
  pairs = {}
  for a, b in PAIRS:
    if a in scores and b in scores:
      # In mode "own" a base model is measured in the other arm's form.
      scores_a, scores_b = scores[a][_mode(a, mode, b)], scores[b][_mode(b, mode, a)]
      pairs[f"{a} - {b}"] = _differences(scores_a, scores_b)
  return pairs


def _as_data(rows: dict[str, dict]) -> dict[str, dict]:
  """Returns the rows with dicts instead of named tuples, for JSON."""
  data = {}
  for name, found in rows.items():
    data[name] = {figure: found[figure]._asdict() for figure in FIGURES}
  return data


def _mode(name: str, mode: str, other: str = "") -> str:
  """Returns the mode in which an arm is measured; `other` is the arm beside a base model."""
  if mode != "own":
    return mode
  if name == "base":
    return TRAINED_IN.get(other, "whole") if other else "stepwise"
  return TRAINED_IN.get(name, "whole")


def _scores(arm: Arm, mode: str) -> dict:
  """Returns greedy, avg and pass as arrays [seeds, problems], and k."""
  k, greedy, average, passed = 0, [], [], []
  for folders in arm.evaluations.values():
    folder = folders[mode] / "arithmetic"
    # "sampled-k.jsonl" ends in a digit, unlike the file of its responses, sampled-k.rollouts.jsonl.
    (sampled,) = folder.glob("sampled-*[0-9].jsonl")
    k = int(sampled.stem.partition("-")[2])
    greedy.append(_right(folder / "greedy.jsonl").mean(axis=1))
    right_pk = _right(sampled)
    average.append(right_pk.mean(axis=1))
    passed.append(right_pk.any(axis=1))
  return {
    "greedy": np.array(greedy, float),
    "avg": np.array(average, float),
    "pass": np.array(passed, float),
    "k": k,
  }


def _right(path: pathlib.Path) -> np.ndarray:
  """Returns which samples are correct, bool [problems, samples]; problems are sorted by id."""
  lines = [line for _, line in json_lines(path)]
  # The same order in every evaluation: paired differences subtract problem by problem.
  lines.sort(key=lambda line: line["id"])
  right_pk = []
  for line in lines:
    right_pk.append([sample["right"] for sample in line["samples"]])
  return np.array(right_pk)


def _figures(scores: dict) -> dict[str, paired.Summary]:
  """Returns each figure's mean and spread over seeds."""
  return {figure: paired.summary(scores[figure]) for figure in FIGURES}


def _differences(a: dict, b: dict) -> dict[str, paired.Difference]:
  """Returns each figure's paired difference, over the seeds that both arms have."""
  s = min(len(a["greedy"]), len(b["greedy"]))  # arms have the seeds 0, 1, 2, ...
  return {figure: paired.difference(a[figure][:s], b[figure][:s]) for figure in FIGURES}


def _cost(arm: Arm) -> dict[str, float]:
  """Returns an arm's training cost: mean over seeds of steps, sampled tokens and seconds.

  All stages of a seed's training are added up.
  """
  sums = []
  for runs in arm.runs:
    steps = []
    for run in runs:
      # Step 0 is the validation before training.
      steps += [step for _, step in json_lines(run / "metrics.jsonl") if step["step"] > 0]
    seconds = 0.0
    for part in ("seconds_sample", "seconds_update", "seconds_sync"):
      seconds += _total(steps, part)
    sums.append((len(steps), _total(steps, "sampled_tokens"), seconds))
  count, tokens, seconds = np.mean(sums, axis=0) if sums else (0, 0, 0)
  return {"steps": float(count), "sampled_tokens": float(tokens), "seconds": float(seconds)}


def _total(steps: Sequence[dict], key: str) -> float:
  """Returns the sum of a metric; steps without it (supervised fine-tuning) count as 0."""
  return sum(step.get(key, 0.0) for step in steps)


def _compute(arms: Sequence[Arm]) -> str:
  """Returns the section with the training cost of each arm."""
  lines = [["training, mean of the seeds", "seeds", "steps", "sampled tokens", "seconds"]]
  for arm in arms:
    cost = _cost(arm)
    seeds = str(len(arm.evaluations))
    numbers = [f"{cost[key]:,.0f}" for key in ("steps", "sampled_tokens", "seconds")]
    lines.append([arm.title, seeds, *numbers])
  return "\n".join(columns.aligned(lines))


def _section(mode, arms, rows, pairs, k) -> str:
  """Returns the section of one mode: a line per arm, then a line per pair."""
  title_of_mode = {
    "own": "own: each arm in the form that it was trained in last",
    "whole": "whole: one response for the whole solution, as in the paper",
    "stepwise": "stepwise: turn by turn, monologues dropped",
  }[mode]
  titles = {arm.name: arm.title for arm in arms}
  heads = ["greedy", f"avg@{k}", f"pass@{k}"]  # in the order of FIGURES
  lines = [[title_of_mode, *heads]]
  for name, found in rows.items():
    title = f"{titles[name]} ({_mode(name, mode)})" if mode == "own" else titles[name]
    lines.append([title, *(_summary(found[figure]) for figure in FIGURES)])
  lines.append(["", "", "", ""])
  lines.append(["differences, with 95 % intervals", *heads])
  for pair, found in pairs.items():
    a, b = pair.split(" - ")
    cells = [_difference(found[figure]) for figure in FIGURES]
    lines.append([f"{titles[a]} - {titles[b]}", *cells])
  return "\n".join(columns.aligned(lines))


def _summary(found: paired.Summary) -> str:
  """Returns mean and spread in percent."""
  spread = "" if found.spread is None else f" +- {100 * found.spread:.1f}"
  return f"{100 * found.mean:.1f}{spread}"


def _difference(found: paired.Difference) -> str:
  """Returns a difference and its interval in percentage points."""
  return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
