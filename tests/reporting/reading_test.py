"""Workdirs of runs: what is whole is read, and what is not is named."""

import json

import pytest

from srl_jax.errors import UserError
from srl_jax.reporting import reading, rollouts
from tests.reporting.runs import group_line, metrics_line, write_run


def test_a_whole_run_has_no_faults(tmp_path):
  write_run(tmp_path / "a", {1: [group_line(["x", "y"])], 2: [group_line(["x", "y"])]}, summary={})
  (run,) = reading.read_runs([tmp_path / "a"])
  assert run.name == "a" and run.faults == [] and run.summary == {}
  assert [line["step"] for line in run.metrics] == [1, 2]
  assert run.config["algorithm.std_epsilon"] == 0.01
  found = rollouts.read_groups(run)
  assert [group.step for group in found.groups] == [1, 2] and found.faults == []


def test_damaged_lines_of_metrics_are_left_out_and_named(tmp_path):
  write_run(tmp_path / "a", {1: []})
  good = json.dumps(metrics_line(2, entropy=0.5))
  nested = "[" * 100_000
  lines = [good, "\0\0\0", "[1]", '{"no": 1}', '{"step": true}', nested, '{"step": 3, "loss": NaN}']
  (tmp_path / "a" / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
  (run,) = reading.read_runs([tmp_path / "a"])
  assert [line["step"] for line in run.metrics] == [2, 3] and "loss" not in run.metrics[1]
  named = [sentence for sentence in run.faults if sentence.startswith("metrics.jsonl: line ")]
  assert [int(sentence.split()[2].strip(",")) for sentence in named] == [2, 3, 4, 5, 6, 8]
  assert "not written to its end" in named[-1]


def test_of_two_lines_for_a_step_the_later_one_counts(tmp_path):
  lines = [metrics_line(1, loss=1.0), metrics_line(2, loss=2.0), metrics_line(1, loss=3.0)]
  write_run(tmp_path / "a", {}, lines)
  (run,) = reading.read_runs([tmp_path / "a"])
  assert [(line["step"], line["loss"]) for line in run.metrics] == [(1, 3.0), (2, 2.0)]


@pytest.mark.parametrize(
  "change",
  [
    {"rewards": [0.5]},
    {"rewards": [0.5, float("nan")]},
    {"rewards": [10**400, 1]},
    {"rewards": [True, False]},
    {"texts": "no list"},
    {"actions": [1, 2]},
    {"texts": [], "actions": [], "rewards": [], "failures": []},
    {"target": None},
    {"context": "no list"},
    {"dropped": 3},
    {"prompt_id": None},
  ],
  ids=str,
)
def test_groups_with_damaged_parts_are_left_out_and_named(tmp_path, change):
  write_run(
    tmp_path / "a", {3: [group_line(["x", "y"]) | change, group_line(["x", "z"], id="q/2")]}
  )
  (run,) = reading.read_runs([tmp_path / "a"])
  found = rollouts.read_groups(run)
  assert [group.id for group in found.groups] == ["q/2"]
  (fault,) = found.faults
  assert fault.startswith("rollouts/step_000003.jsonl: line 1 ")


def test_groups_of_several_processes_are_one_step(tmp_path):
  """Each process has a file; the key `group` has a group's place among all of the step."""
  line = lambda i: json.dumps(group_line(["x", "y"], id=f"q/{i}") | {"group": i}) + "\n"
  write_run(tmp_path / "a", {1: [], 2: []})
  for step in (1, 2):
    for process in range(2):
      path = tmp_path / "a" / "rollouts" / f"step_{step:06d}.{process:03d}.jsonl"
      path.write_text("".join(line(i) for i in range(process, 5, 2)))
  (run,) = reading.read_runs([tmp_path / "a"])
  found = rollouts.read_groups(run).groups
  places = [(group.step, group.number, group.id) for group in found]
  assert places == [(step, i + 1, f"q/{i}") for step in (1, 2) for i in range(5)]
  size = sum(path.stat().st_size for _, path in run.rollouts)
  part = rollouts.read_groups(run, size // 2)  # whole steps are left out
  assert [(group.step, group.number) for group in part.groups] == [(2, i + 1) for i in range(5)]
  assert (part.steps, part.steps_read) == (2, 1)


def test_many_faults_of_a_file_are_counted(tmp_path):
  write_run(tmp_path / "a", {})
  (tmp_path / "a" / "metrics.jsonl").write_text("x\n" * 1000)
  (run,) = reading.read_runs([tmp_path / "a"])
  assert len(run.faults) == reading.FAULTS_SHOWN + 1 and "990" in run.faults[-1]


def test_a_workdir_without_config_and_with_a_damaged_summary(tmp_path):
  write_run(tmp_path / "a", {1: [group_line(["x", "y"])]})
  (tmp_path / "a" / "config.json").unlink()
  (tmp_path / "a" / "summary.json").write_text('{"steps": ')
  (run,) = reading.read_runs([tmp_path / "a"])
  assert run.summary is None and run.config == {} and len(run.metrics) == 1
  assert {sentence.partition(":")[0] for sentence in run.faults} == {"config.json", "summary.json"}


def test_folders_without_a_run_are_refused(tmp_path):
  (tmp_path / "empty").mkdir()
  write_run(tmp_path / "a", {})
  for workdirs in ([], [tmp_path / "empty"], [tmp_path / "none"], [tmp_path / "a"] * 2):
    with pytest.raises(UserError, match="--workdirs"):
      reading.read_runs(workdirs)


def test_names_are_as_long_as_they_must_be(tmp_path):
  for folder in ("x/srl/run", "x/sft/run", "y"):
    write_run(tmp_path / folder, {})
  runs = reading.read_runs([tmp_path / "x/srl/run", tmp_path / "x/sft/run", tmp_path / "y"])
  assert [run.name for run in runs] == ["srl/run", "sft/run", "y"]
  runs = reading.read_runs([tmp_path / "x/srl/run", tmp_path / "x/sft/run"])
  assert [run.name for run in runs] == ["srl", "sft"]


def test_the_numbers_of_a_group(tmp_path):
  line = group_line(["1. **Add 2**: 4", "z", "z"], failures=[None, None, "no_open"], id="problem/3")
  write_run(tmp_path / "a", {5: [line]})
  (run,) = reading.read_runs([tmp_path / "a"])
  (group,) = rollouts.read_groups(run).groups
  assert (group.step, group.number, group.step_index, group.target_length) == (5, 1, 3, 15)
  assert group.rewards == (1.0, 0.0, -1.0) and group.formed == (1.0, 0.0)
  assert group.spread == pytest.approx((2 / 3) ** 0.5) and group.mean == 0.0
  assert (group.actions, group.monologues) == (3, 3)


@pytest.mark.parametrize(
  "id, index", [("a/12", 12), ("a#2/3", 3), ("a", 0), ("a/b", 0), ("a/²", 0)]
)
def test_step_index_of_an_example(id, index):
  assert rollouts.step_index(id) == index


def test_of_large_files_evenly_spaced_ones_are_read(tmp_path):
  line = group_line(["x", "y"])
  write_run(tmp_path / "a", {step: [line] for step in range(1, 11)})
  (run,) = reading.read_runs([tmp_path / "a"])
  size = (tmp_path / "a" / "rollouts" / "step_000001.jsonl").stat().st_size
  found = rollouts.read_groups(run, limit=4 * size)
  assert [group.step for group in found.groups] == [1, 4, 7, 10]
  assert (found.steps, found.steps_read) == (10, 4)
  # A single file that is larger than the limit is read up to it.
  write_run(tmp_path / "b", {1: [line] * 10})
  (run,) = reading.read_runs([tmp_path / "b"])
  assert len(rollouts.read_groups(run, limit=4 * size).groups) == 4


@pytest.mark.parametrize(
  "text, action, inside",
  [
    ("<think> a b </think>c", "c", "a b"),
    ("a b</think>c", "c", "a b"),  # the prompt opened the block
    ("<think>a</think>b<think>c</think>d", "b d", "a\nc"),
    ("<think>a b", "", "a b"),
    ("a b", "", "a b"),  # cut off inside a block that the prompt opened
    ("a b", "a b", ""),
  ],
)
def test_monologue_of_a_response(text, action, inside):
  assert rollouts.monologue(text, action) == inside


def test_malformed_responses_are_not_called_equal(tmp_path):
  line = group_line(["", "", "a", "a"], failures=["cut_off", "cut_off", None, None])
  write_run(tmp_path / "a", {1: [line | {"texts": ["x", "x", "<think>", "<think>"]}]})
  (run,) = reading.read_runs([tmp_path / "a"])
  (group,) = rollouts.read_groups(run).groups
  assert group.actions == 3
