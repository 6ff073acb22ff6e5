"""The curves of a page: which metrics each chart shows, and their values over the run."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from srl_jax.reporting.reading import RunFiles

POINTS = 2_000  # of a curve; of a longer run every k-th step is shown, and all validated ones
# Phases of a step that follow one another; seconds_reward is a part of seconds_sample, and
# seconds_compile is summed over threads.
PHASES = ("sample", "update", "sync", "validate", "save")


@dataclasses.dataclass(frozen=True)
class Chart:
  """A chart of metrics over steps.

  Attributes:
    title: shown above it.
    series: {metric: label}; a metric "failure_*" stands for all with that beginning.
    note: what to look for.
    stacked: the values add up; then each run has a chart.
    share: the axis is a percentage.
    line: config key whose value is drawn as a horizontal line, or "".
    best: whether the best validated step is marked.
    log: whether the axis is logarithmic.
  """

  title: str
  series: Mapping[str, str]
  note: str = ""
  stacked: bool = False
  share: bool = False
  line: str = ""
  best: bool = False
  log: bool = False


CHARTS = (
  Chart(
    "Reward",
    {"reward_mean": "all responses", "reward_formed_mean": "well-formed ones"},
    "Penalties for malformed responses are in the first, not in the second.",
  ),
  Chart(
    "Validation",
    {
      "validation_reward": "reward",
      "validation_accuracy": "right final answers",
      "validation_failures": "format failures",
      "validation_exact": "exact responses",
    },
    "Greedy responses to held-out prompts. The star is the best step.",
    best=True,
  ),
  Chart(
    "Format failures by reason",
    {"failure_*": ""},
    "Share of all sampled responses.",
    stacked=True,
    share=True,
  ),
  Chart(
    "Groups kept and dropped",
    {"groups_kept": "kept", "dropped_*": ""},
    "Dropped groups are not trained on.",
    stacked=True,
  ),
  Chart(
    "Spread of rewards within groups",
    {"reward_group_std": "mean over groups"},
    "Dashed: algorithm.std_epsilon. Groups below it are dropped.",
    line="algorithm.std_epsilon",
  ),
  Chart(
    "Tokens of a response",
    {"response_tokens_mean": "mean", "response_tokens_max": "longest"},
    "Dashed: rollout.max_tokens.",
    line="rollout.max_tokens",
  ),
  Chart("Words", {"monologue_words_mean": "monologue", "action_words_mean": "action"}),
  Chart(
    "Malformed and truncated responses",
    {"format_failures": "malformed", "truncated_share": "truncated"},
    share=True,
  ),
  Chart("Entropy", {"entropy": "nats a token"}, "Near 0 all responses to a prompt are equal."),
  Chart("Log-prob", {"logprob": "nats a token"}),
  Chart("Loss", {"loss": "training", "validation_loss": "validation"}),
  Chart("Gradient norm", {"grad_norm": "before clipping"}, log=True),
  Chart(
    "Clip fraction",
    {"clip_fraction": "of tokens"},
    "0 with one optimiser step a batch.",
    share=True,
  ),
  Chart("Importance weight", {"importance_weight": "mean"}, "1: engine and trainer agree."),
  Chart(
    "Log-prob gap of engine and trainer",
    {"logprob_gap_mean": "mean", "logprob_gap_p99": "99th percentile"},
    "Nats a token.",
    log=True,
  ),
  Chart("KL to the first policy", {"kl": "estimate"}),
  Chart("Tokens a second", {"tokens_per_second": "sampled"}),
  Chart("Model FLOPs utilisation", {"mfu_update": "of the update"}, share=True),
  Chart("Packed tokens that are real", {"packed_share": "share"}, share=True),
  Chart(
    "Seconds by phase",
    {"seconds_scoring": "", "seconds_*": ""},
    "Of a step, one phase after the other; scoring is a part of sampling.",
    stacked=True,
  ),
  Chart(
    "Compiling",
    {"seconds_compile": "seconds", "programs_compiled": "programs"},
    "Seconds are summed over threads. After step 1 both are 0.",
  ),
)


def curves(runs: Sequence[RunFiles]) -> dict[str, Any]:
  """Returns the charts for which there are values, and each run's values.

  {"charts": [...], "runs": [{"step", "tokens", "seconds": lists, "series": {metric: list}}]}. Lists
  of a run have one entry for each step that is shown; None is a step without the value.
  """
  values = [of_run(run) for run in runs]
  charts = []
  for chart in CHARTS:
    series = {}
    for run in values:
      series |= _labels(chart, run["series"])
    if series:
      lines = [_line(run, chart.line) for run in runs]
      charts.append(dataclasses.asdict(chart) | {"series": series, "line": lines})
  return {"charts": charts, "runs": values}


def of_run(run: RunFiles) -> dict[str, Any]:
  """Returns a run's axes (step, tokens, seconds) and the values of its metrics."""
  tokens, seconds, axes = 0.0, 0.0, []
  for line in run.metrics:
    tokens += line.get("sampled_tokens", 0.0)
    seconds += sum(line.get(f"seconds_{phase}", 0.0) for phase in PHASES)
    axes.append((int(line["step"]), tokens, seconds))
  places = _thinned(run.metrics)
  lines = [shares_and_phases(run.metrics[place], run.config) for place in places]
  names = sorted({name for line in lines for name in line})
  return {
    "step": [axes[place][0] for place in places],
    "tokens": [axes[place][1] for place in places],
    "seconds": [round(axes[place][2], 2) for place in places],
    "series": {name: [_short(line.get(name)) for line in lines] for name in names},
  }


def _thinned(metrics: Sequence[Mapping[str, float]]) -> list[int]:
  """Returns the places of the steps that are shown: all, or every k-th and the validated ones."""
  k = -(-len(metrics) // POINTS)  # rounded up
  places = []
  for place, line in enumerate(metrics):
    validated = any(name.startswith("validation_") for name in line)
    if place % k == 0 or validated or place == len(metrics) - 1:
      places.append(place)
  return places


def shares_and_phases(line: Mapping[str, float], config: Mapping[str, Any]) -> dict[str, float]:
  """Returns a step's metrics with failures as shares of the responses, and phases that add up.

  seconds_sample is without scoring, which is seconds_scoring. Reasons without a response, and
  failures of the step-0 line, are left out.
  """
  out = {name: value for name, value in line.items() if name not in ("step", "seconds_reward")}
  samples = config.get("rollout.samples", 8)
  responses = line.get("groups_sampled", 0.0) * (samples if isinstance(samples, int) else 8)
  for name in line:
    if name.startswith("failure_"):
      out[name] = line[name] / responses if responses else 0.0
  if "seconds_reward" in line and "seconds_sample" in line:
    out["seconds_scoring"] = min(line["seconds_reward"], line["seconds_sample"])
    out["seconds_sample"] = line["seconds_sample"] - out["seconds_scoring"]
  return out


def _labels(chart: Chart, series: Mapping[str, Any]) -> dict[str, str]:
  """Returns {metric: label} of a chart for the metrics that a run has."""
  found = {}
  for name, label in chart.series.items():
    if name == "seconds_*":
      found |= {f"seconds_{phase}": phase for phase in PHASES if f"seconds_{phase}" in series}
    elif name.endswith("*"):
      start = name.removesuffix("*")
      found |= {key: key.removeprefix(start) for key in sorted(series) if key.startswith(start)}
    elif name in series:
      found[name] = label or name.removeprefix("seconds_")
  return found


def _line(run: RunFiles, key: str) -> float | None:
  value = run.config.get(key) if key else None
  return float(value) if isinstance(value, int | float) else None


def best_step(run: RunFiles) -> dict[str, Any] | None:
  """Returns {"step", "metric", "value"} of the best validated step, as a run chooses it.

  The highest accuracy, or reward where there are no answers; in supervised runs the share of exact
  responses, the accuracy or the lowest loss. Of equals the later step.
  """
  for name in ("validation_exact", "validation_accuracy", "validation_reward"):
    found = [(line[name], line["step"]) for line in run.metrics if name in line]
    if found:
      value, step = max(found)
      return {"step": int(step), "metric": name, "value": value}
  name = "validation_loss"
  losses = [(-line[name], line["step"]) for line in run.metrics if name in line]
  if not losses:
    return None
  value, step = max(losses)
  return {"step": int(step), "metric": name, "value": -value}


def _short(value: float | None) -> float | None:
  """Returns a value with five digits, which is more than a chart shows."""
  return None if value is None else float(f"{value:.5g}")
