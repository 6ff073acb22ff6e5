"""Curves: the charts that have values, axes, shares and phases."""

import pytest

from srl_jax.reporting import curves, reading
from tests.reporting.runs import CONFIG, metrics_line, write_run


def read(folder, lines, config=CONFIG):
  write_run(folder, {}, lines, config)
  (run,) = reading.read_runs([folder])
  return run


def test_only_charts_with_values_are_shown(tmp_path):
  run = read(tmp_path / "a", [metrics_line(1, entropy=0.5, kl=0.1)])
  titles = [chart["title"] for chart in curves.curves([run])["charts"]]
  assert titles == ["Reward", "Entropy", "KL to the first policy", "Seconds by phase"]


def test_a_metric_of_one_of_two_runs_is_shown(tmp_path):
  runs = [read(tmp_path / "a", [metrics_line(1)]), read(tmp_path / "b", [metrics_line(1, kl=1.0)])]
  found = curves.curves(runs)
  assert "KL to the first policy" in [chart["title"] for chart in found["charts"]]
  assert "kl" not in found["runs"][0]["series"] and found["runs"][1]["series"]["kl"] == [1.0]


def test_axes_add_up(tmp_path):
  lines = [
    {"step": 0, "validation_reward": 0.5},
    metrics_line(1, seconds_update=2.0, seconds_save=0.5, seconds_reward=0.25),
    metrics_line(2, seconds_update=1.0),
  ]
  found = curves.of_run(read(tmp_path / "a", lines))
  assert found["step"] == [0, 1, 2] and found["tokens"] == [0, 100, 200]
  assert found["seconds"] == [0, 3.5, 5.5]
  # Scoring is a part of sampling, so that the stacked phases add up to the time.
  assert found["series"]["seconds_scoring"] == [None, 0.25, None]
  assert found["series"]["seconds_sample"] == [None, 0.75, 1.0]


def test_failures_are_shares_of_the_sampled_responses(tmp_path):
  lines = [metrics_line(1, groups_sampled=10, failure_no_open=5), metrics_line(2, groups_sampled=4)]
  found = curves.of_run(read(tmp_path / "a", lines))
  assert found["series"]["failure_no_open"] == [0.25, None]  # of 10 groups of 2 responses


def test_a_long_run_is_thinned_but_keeps_its_validation(tmp_path):
  lines = [metrics_line(step) for step in range(1, 3 * curves.POINTS)]
  lines[4] |= {"validation_reward": 0.5}
  found = curves.of_run(read(tmp_path / "a", lines))
  assert len(found["step"]) <= curves.POINTS + 2
  assert {1, 5, lines[-1]["step"]} <= set(found["step"])
  assert found["tokens"][-1] == 100 * len(lines)  # steps that are not shown count too


@pytest.mark.parametrize(
  "name, values, step",
  [
    ("validation_accuracy", [0.1, 0.3, 0.3, 0.2], 3),  # of equals the later one
    ("validation_reward", [0.5, 0.4, 0.1, 0.2], 1),
    ("validation_loss", [2.0, 1.0, 1.5, 3.0], 2),
  ],
)
def test_best_step(tmp_path, name, values, step):
  lines = [metrics_line(i + 1, **{name: value}) for i, value in enumerate(values)]
  best = curves.best_step(read(tmp_path / "a", lines))
  assert (best["metric"], best["step"], best["value"]) == (name, step, values[step - 1])


def test_accuracy_decides_before_the_reward(tmp_path):
  lines = [
    metrics_line(1, validation_accuracy=0.2, validation_reward=0.1),
    metrics_line(2, validation_accuracy=0.1, validation_reward=0.9),
  ]
  assert curves.best_step(read(tmp_path / "a", lines))["step"] == 1
  assert curves.best_step(read(tmp_path / "b", [metrics_line(1)])) is None


def test_lines_of_the_config(tmp_path):
  run = read(tmp_path / "a", [metrics_line(1, reward_group_std=0.1)])
  (chart,) = [c for c in curves.curves([run])["charts"] if "reward_group_std" in c["series"]]
  assert chart["line"] == [0.01]
