"""The audit of the reward by hand, and the sentences about what is wrong."""

import pytest

from srl_jax.reporting import audit, findings, reading, rollouts
from tests.reporting.runs import CONFIG, group_line, metrics_line, write_run


def audited(tmp_path, groups_by_step, config=CONFIG, metrics=None):
  write_run(tmp_path / "run", groups_by_step, metrics, config)
  (run,) = reading.read_runs([tmp_path / "run"])
  found = rollouts.read_groups(run).groups
  return run, audit.audit(run, found)


def rewarded(*rewards, id="p/1", **given):
  return group_line(
    [f"action {i}" for i in range(len(rewards))], id=id, rewards=list(rewards), **given
  )


def test_no_groups_have_no_audit(tmp_path):
  run, found = audited(tmp_path, {})
  assert found is None and findings.findings(run, found) == []


def test_histogram_by_hand():
  found = audit.histogram([0.0, 0.01, 1.0, 1.0], 0.0, 1.0)
  assert len(found["shares"]) == audit.BINS and len(found["edges"]) == audit.BINS + 1
  assert found["shares"][0] == found["shares"][-1] == 0.5 and found["median"] == 0.505
  # Values beyond the range are in the picture too.
  assert audit.histogram([-3.0], 0.0, 1.0)["edges"][0] == -3.0


def test_what_other_epsilons_keep():
  kept = dict(map(tuple, audit.kept_by_epsilon([0.0, 0.01, 0.04, 0.2])))
  # A group is kept if its spread is greater than epsilon, not equal to it.
  assert kept[0.0] == 0.75 and kept[0.01] == 0.5 and kept[0.03] == 0.5 and kept[0.2] == 0.0


def test_reward_by_step_and_by_length(tmp_path):
  lines = [
    rewarded(0.2, 0.4, id="a/1", target="x" * 5),
    rewarded(0.6, -1.0, id="b/1", target="x" * 5, failures=[None, "no_open"]),
    rewarded(1.0, 0.8, id="a/2", target="x" * 9),
    rewarded(0.1, 0.1, id="whole", target="x" * 30),
  ]
  _, found = audited(tmp_path, {1: lines})
  assert found["by_step"] == [
    {"step": 1, "mean": pytest.approx(0.4), "count": 3},
    {"step": 2, "mean": 0.9, "count": 2},
  ]
  assert [(part["low"], part["high"], part["count"]) for part in found["by_length"]] == [
    (5, 5, 3), (9, 9, 2), (30, 30, 2),
  ]  # fmt: skip
  assert (found["groups"], found["responses"], found["malformed"]) == (4, 8, 0.125)


def test_repeats_over_time(tmp_path):
  different, equal = group_line(["a", "b", "c", "d"]), group_line(["a", "a", "a", "b"])
  equal["texts"] = ["<think>x</think>a"] * 4
  _, found = audited(tmp_path, {1: [different], 2: [equal]})
  assert found["repeats"] == [
    {"step": 1, "actions": 0.0, "monologues": 0.0},
    {"step": 2, "actions": 0.5, "monologues": 0.75},
  ]


def test_monologues_that_repeat_themselves():
  assert audit.repeats_itself("so it is " * 20)
  assert not audit.repeats_itself("so it is")  # too short
  assert not audit.repeats_itself(" ".join(map(str, range(100))))


@pytest.mark.parametrize(
  "target, header",
  [
    ("1. **Add 41**: 62", "1. **Add 41**:"),
    ("### Step 2: Look at it\nThe rest.", "### Step 2: Look at it"),
    ("no number", None),
    ("3. no title here", None),
    (
      "<function=bash>\n<parameter=command>ls</parameter>\n</function>",
      "<function=bash>\n</function>",
    ),
  ],
)
def test_the_number_and_title_of_a_step(target, header):
  assert audit.header(target) == header


def test_reward_of_the_title_alone():
  """Targets of 17 and 10 characters, 14 and 9 of them in the header: 28/31 and 18/19."""
  found = audit.header_only(["1. **Add 41**: 62", "1. **A**: 7"[:11], "no title"])
  assert found["targets"] == 2
  assert found["mean"] == pytest.approx((2 * 14 / 31 + 2 * 9 / 20) / 2, abs=1e-4)
  assert audit.header_only(["no title"]) is None
  # Of the words 1 . * * Add 41 * * : 62 all but the last are in the header.
  words = audit.header_only(["1. **Add 41**: 62"], "words")
  assert words["mean"] == pytest.approx(2 * 9 / 19, abs=1e-4)
  assert audit.header_only(["1. **Add 41**: 62"], "my own") is None


def test_most_and_least_rewarded_actions(tmp_path):
  lines = {step: [rewarded(*[i / 10 for i in range(8)])] for step in (1, 2)}
  lines[3] = [rewarded(0.5, 0.6, id="q/1")]
  _, found = audited(tmp_path, lines)
  often, once = found["extremes"]
  assert often["id"] == "p/1" and often["count"] == 16
  assert [action for _, action in often["most"]] == ["action 7", "action 6", "action 5"]
  assert [action for _, action in often["least"]] == ["action 2", "action 1", "action 0"]
  assert len(once["most"]) == 2 and once["least"] == []


# ---- sentences


def test_a_healthy_run_has_no_findings(tmp_path):
  lines = {step: [rewarded(0.2, 0.9, target="no title")] for step in range(1, 5)}
  metrics = [metrics_line(step, groups_kept=2, format_failures=0.0) for step in range(1, 5)]
  assert findings.findings(*audited(tmp_path, lines, metrics=metrics)) == []


def test_an_epsilon_above_the_spreads_is_named_with_a_better_one(tmp_path):
  dropped = rewarded(0.50, 0.53, dropped="low_std", target="no title")  # spread 0.015
  lines = {1: [dropped] * 3 + [rewarded(0.1, 0.9, target="no title")]}
  config = CONFIG | {"algorithm": {"std_epsilon": 0.05}}
  (sentence,) = findings.findings(*audited(tmp_path, lines, config))
  assert "75% of the groups were dropped for low_std" in sentence
  assert "epsilon 0.05" in sentence and "median 0.015" in sentence
  assert "0.01 would keep 100%" in sentence


def test_groups_of_equal_rewards_are_no_fault_of_epsilon(tmp_path):
  lines = {1: [rewarded(1.0, 1.0, dropped="low_std", target="no title")] * 3}
  (sentence,) = findings.findings(*audited(tmp_path, lines))
  assert "not the cause" in sentence and "rollout.temperature" in sentence


def test_a_title_that_is_paid_as_the_policy_is_named(tmp_path):
  lines = {1: [rewarded(0.2, 0.9, target="1. **Add 41**: 62")] * 2}  # 28 / 31 for the title alone
  (sentence,) = findings.findings(*audited(tmp_path, lines))
  assert "gets 0.90" in sentence and "policy gets 0.55" in sentence and "title_hint" in sentence


@pytest.mark.parametrize("reason", ["all_wrong", "all_right", "all_failed"])
def test_other_reasons_of_most_groups_are_named(tmp_path, reason):
  lines = {1: [rewarded(0.0, 0.0, dropped=reason, target="")] * 3 + [rewarded(0.0, 1.0, target="")]}
  (sentence,) = findings.findings(*audited(tmp_path, lines))
  assert f"75% of the groups were dropped for {reason}" in sentence


@pytest.mark.parametrize(
  "values, words",
  [
    ({"format_failures": 0.5, "failure_no_open": 3.0, "failure_several": 9.0}, "mostly several"),
    ({"truncated_share": 0.3}, "rollout.max_tokens, now 32"),
    ({"logprob_gap_exp": 1.2}, "1.200"),
    ({"groups_kept": 1}, "batch.prompts=2"),
  ],
)
def test_metrics_out_of_their_limits_are_named(tmp_path, values, words):
  lines = [metrics_line(step, **values) for step in range(1, 9)]
  (sentence,) = findings.findings(*audited(tmp_path, {}, metrics=lines))
  assert words in sentence


def test_a_falling_validation_and_entropy_are_named(tmp_path):
  lines = []
  for step in range(1, 31):
    lines.append(metrics_line(step, validation_reward=0.5 - 0.01 * step, entropy=1 / step**2))
  overfit, certain = findings.findings(*audited(tmp_path, {}, metrics=lines))
  assert "0.490 at step 1" in overfit and "step 30" in overfit
  assert "nats" in certain
