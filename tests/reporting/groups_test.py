"""The groups of a page: which are shown, their matched blocks and advantages."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srl_jax.learner.grpo import group_advantages
from srl_jax.reporting import groups, reading, rollouts
from tests.reporting.runs import CONFIG, group_line, write_run


def read(tmp_path, groups_by_step, config=CONFIG):
  write_run(tmp_path / "run", groups_by_step, config=config)
  (run,) = reading.read_runs([tmp_path / "run"])
  return run, rollouts.read_groups(run).groups


def many(tmp_path):
  """100 groups in 50 steps: the target is written better and better, some groups are dropped."""
  steps = {}
  for step in range(1, 51):
    written = "1. **Add 2**: 4"[: 1 + step // 4]
    steps[step] = [
      group_line([written, "1"], id=f"a-{step}/1"),
      group_line(
        [written, written], id=f"b-{step}/1", dropped="low_std" if step % 2 else "surplus"
      ),
    ]
  return read(tmp_path, steps)


def test_the_choice_has_all_kinds_and_depends_on_the_files_alone(tmp_path):
  run, all_groups = many(tmp_path)
  chosen = groups.choose(all_groups, 25)
  assert len(chosen) == 25
  assert list(chosen) == list(groups.choose(all_groups, 25))
  means = [group.mean for group in all_groups]
  by_why = {}
  for group, reasons in chosen.items():
    for why in reasons:
      by_why.setdefault(why, []).append(group)
  assert max(means) in [group.mean for group in by_why["best"]]
  assert min(means) in [group.mean for group in by_why["worst"]]
  assert max(g.spread for g in all_groups) in [g.spread for g in by_why["most spread"]]
  assert all(group.dropped == "low_std" for group in by_why["dropped: low_std"])
  assert by_why["dropped: surplus"]
  # The sample is spread over the run: with some in every fifth of it.
  assert {(group.step - 1) // 10 for group in by_why["sample"]} == {0, 1, 2, 3, 4}


def test_all_groups_of_a_small_run_are_shown(tmp_path):
  run, all_groups = many(tmp_path)
  shown = groups.shown_groups(run, all_groups, 500)
  assert [(group["step"], group["number"]) for group in shown] == [
    (group.step, group.number) for group in all_groups
  ]


def test_a_limit_of_bytes_keeps_the_most_important_groups(tmp_path):
  run, all_groups = many(tmp_path)
  shown = groups.shown_groups(run, all_groups, 100, 20_000)
  assert 4 < len(shown) < 60 and len(json.dumps(shown)) <= 20_000
  assert {"best", "worst", "most spread"} <= {why for group in shown for why in group["why"]}


@given(st.integers(0, 40), st.integers(1, 50))
def test_evenly_has_no_item_twice_and_both_ends(count, wanted):
  items = list(range(count))
  found = groups.evenly(items, wanted)
  assert len(set(found)) == len(found) == min(count, wanted)
  if count and wanted > 1:
    assert {0, count - 1} <= set(found)


def test_blocks_and_ratio_of_a_response(tmp_path):
  """Blocks ". **Add " (8) and "**: 4" (5): R = 2 * 13 / 30, whatever surrounds the target."""
  run, (group,) = read(tmp_path, {1: [group_line(["2. **Add 7**: 4", "1"], "1. **Add 2**: 4\n")]})
  (shown,) = groups.shown_groups(run, [group])
  first = shown["responses"][0]
  assert first["blocks"] == [[1, 1, 8], [10, 10, 5]] and first["is_ratio"]
  assert first["reward"] == 2 * 13 / 30 and first["monologue"] == "so 0"
  assert shown["target"] == "1. **Add 2**: 4"


def test_malformed_and_very_long_actions_have_no_blocks(tmp_path):
  long = "x" * (groups.COMPARED + 1)
  line = group_line(["a", long], failures=["no_open", None], rewards=[-1.0, 0.0])
  run, (group,) = read(tmp_path, {1: [line]})
  first, second = groups.shown_groups(run, [group])[0]["responses"]
  assert first["blocks"] is second["blocks"] is None
  assert first["failure"] == "no_open" and len(second["action"]) < groups.COMPARED + 100


def test_another_reward_is_not_called_a_ratio(tmp_path):
  run, (group,) = read(tmp_path, {1: [group_line(["1. **Add 2**", "x"], rewards=[0.25, 0.0])]})
  first, second = groups.shown_groups(run, [group])[0]["responses"]
  assert first["blocks"] and not first["is_ratio"]
  assert second["is_ratio"]  # 0 is the ratio of texts without a common character


def test_blocks_of_the_similarity_of_words(tmp_path):
  """The equal words are marked, and the reward is not called the ratio of their characters."""
  config = CONFIG | {"reward": {"similarity": "words", "autojunk": False}}
  lines = [group_line(["Add 7 now", "x"], "Add 2 now", rewards=[2 / 3, 0.0])]
  run, (group,) = read(tmp_path, {1: lines}, config)
  first = groups.shown_groups(run, [group])[0]["responses"][0]
  assert first["blocks"] == [[0, 0, 3], [6, 6, 3]] and not first["is_ratio"]


@settings(max_examples=50)
@given(
  rewards=st.lists(st.floats(-1, 1), min_size=2, max_size=8),
  ddof=st.sampled_from([0, 1]),
  scale=st.sampled_from(["std", "none"]),
)
def test_advantages_are_those_of_training(rewards, ddof, scale):
  config = {"algorithm.advantage_ddof": ddof, "algorithm.advantage_scale": scale}
  expected = group_advantages([rewards], ddof=ddof, scale=scale)[0]
  assert groups.advantages_of(rewards, config) == pytest.approx(expected.tolist(), abs=1e-5)


def test_dropped_groups_have_no_advantages(tmp_path):
  run, found = read(tmp_path, {1: [group_line(["a", "1"], dropped="surplus")]})
  (shown,) = groups.shown_groups(run, found)
  assert [response["advantage"] for response in shown["responses"]] == [None, None]


def test_a_group_that_was_cut_back_since_is_not_shown(tmp_path):
  run, found = read(tmp_path, {1: [group_line(["a", "1"])], 2: [group_line(["a", "1"], id="q/1")]})
  (tmp_path / "run" / "rollouts" / "step_000001.jsonl").unlink()
  (tmp_path / "run" / "rollouts" / "step_000002.jsonl").write_text("{}\n")
  assert groups.shown_groups(run, found) == []
