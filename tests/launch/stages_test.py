"""The stages of a table with small stand-ins: order, resuming, failures, signals."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from configs import miniature_row
from launch import stages
from srl_jax.learner.checkpoint import write_config

ROOT = pathlib.Path(__file__).resolve().parents[2]

# python -m work FOLDER NAME UNTIL: notes that it was started, works until UNTIL is noted, writes
# NAME. As our commands do, it ends without its result when it is interrupted.
WORK = """
import pathlib, signal, sys, time
folder, name, until = pathlib.Path(sys.argv[1]), *sys.argv[2:]
stop = []
signal.signal(signal.SIGINT, lambda *_: stop.append(1))
def note(what):
  with (folder / "notes").open("a") as file:
    file.write(f"{what} {name}\\n")
note("start")
while until and until not in (folder / "notes").read_text() and not stop:
  time.sleep(0.02)
if name == "broken":
  print("it broke")
  sys.exit(3)
note("stop" if stop else "end")
if not stop:
  (folder / name).write_text("")
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
  """stage(name, *needs, until="") of a stand-in."""
  (tmp_path / "work.py").write_text(WORK)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))

  def make(name, *needs, until=""):
    arguments = ("work", str(tmp_path), name, until)
    return stages.Stage(name, arguments, (tmp_path / name).exists, needs)

  return make


def notes(folder):
  return (folder / "notes").read_text().splitlines() if (folder / "notes").exists() else []


def test_in_order_and_what_is_finished_is_not_repeated(stage, tmp_path, capsys):
  table = [stage("a"), stage("b", "a"), stage("c", "b")]
  (tmp_path / "a").write_text("")
  stages.show(table)
  shown = capsys.readouterr().out.splitlines()
  assert shown[0] == "# finished: a" and shown[1].endswith(f"-m work {tmp_path} b ''")
  assert not notes(tmp_path)
  stages.run(table, tmp_path / "logs")
  assert notes(tmp_path) == ["start b", "end b", "start c", "end c"]
  stages.run(table, tmp_path / "logs")
  assert len(notes(tmp_path)) == 4


def test_side_by_side_as_far_as_they_need_one_another(stage, tmp_path):
  # Both wait until the other has begun; d waits for a free place.
  table = [stage("a", until="start c"), stage("b", "a"), stage("c", until="start a"), stage("d")]
  stages.run(table, tmp_path / "logs", jobs=2)
  told = notes(tmp_path)
  assert set(told[:2]) == {"start a", "start c"}
  assert told.index("start b") > told.index("end a") and "end d" in told
  assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
    f"{name}.log" for name in "abcd"
  ]


def test_a_failure_stops_the_others_and_names_its_log(stage, tmp_path):
  table = [stage("slow", until="never"), stage("broken", until="start slow")]
  table += [stage("after", "broken")]
  with pytest.raises(ValueError, match=r"broken: ended with code 3; its output is in .*broken.log"):
    stages.run(table, tmp_path / "logs", jobs=2)
  assert (tmp_path / "logs" / "broken.log").read_text() == "it broke\n"
  assert notes(tmp_path)[-1] == "stop slow" and "start after" not in notes(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_stage_and_the_same_table_goes_on(stage, tmp_path, number):
  slow = stage("slow", until="never")
  code = (
    f"import pathlib; from launch import stages; folder = pathlib.Path({str(tmp_path)!r});"
    f"stages.run([stages.Stage('slow', {slow.arguments!r}, (folder / 'slow').exists)], folder)"
  )
  path = os.pathsep.join([str(ROOT), str(tmp_path)])
  table = subprocess.Popen(
    [sys.executable, "-c", code],
    env=os.environ | {"PYTHONPATH": path},
    stdout=subprocess.PIPE,
    text=True,
  )
  end = time.monotonic() + 60
  while not notes(tmp_path) and time.monotonic() < end:
    time.sleep(0.05)
  table.send_signal(number)
  said, _ = table.communicate(timeout=60)
  assert table.returncode == 130 and "the same command goes on" in said
  assert notes(tmp_path) == ["start slow", "stop slow"]
  stages.run([stage("slow")], tmp_path)
  assert notes(tmp_path)[2:] == ["start slow", "end slow"]


def test_flags_are_told_apart():
  argv = ["prog", ":tiny", "--config.mesh=data=1,fsdp=8", "--rows=a", "--evaluate.limit=3"]
  own, arguments, train, evaluate = stages.split_flags(argv, ":", "--config.", "--evaluate.")
  assert own == ["prog", "--rows=a"] and arguments == [":tiny"]
  assert train == ["--config.mesh=data=1,fsdp=8"] and evaluate == ["--evaluate.limit=3"]


# ---- trainings and evaluations

ROW = str(stages.CONFIGS / "miniature_row.py")


def finish(workdir, config):
  workdir.mkdir()
  write_config(workdir, config)
  (workdir / "summary.json").write_text("{}")


def test_a_training_is_finished_with_its_summary_and_belongs_to_its_config(tmp_path):
  first = stages.training("srl-0", f"{ROW}:row=srl", [], tmp_path)
  assert not first.finished()
  finish(tmp_path / "srl-0", miniature_row.get_config("row=srl"))
  assert first.finished()
  for damage in (b"", bytes(20), b"[]"):  # as after a power failure: it is trained to its end again
    (tmp_path / "srl-0" / "summary.json").write_bytes(damage)
    assert not first.finished()
  (tmp_path / "srl-0" / "summary.json").write_text("{}")
  longer = stages.training("srl-0", f"{ROW}:row=srl", ["--config.train.steps=900"], tmp_path)
  assert not longer.finished()  # srl_jax.train goes on with it
  stages.training("srl-0", f"{ROW}:row=srl", ["--config.mesh=fsdp=1"], tmp_path)  # free to change
  with pytest.raises(ValueError, match=r"srl-0 holds a run of another .* seed was 0, is 4. Give"):
    stages.training("srl-0", f"{ROW}:row=srl,seed=4", [], tmp_path)


def test_a_second_stage_starts_from_the_first(tmp_path):
  second = stages.training("b", f"{ROW}:row=rlvr_after", ["--config.seed=3"], tmp_path, "a")
  assert second.needs == ("a",)
  assert second.arguments == (
    *("srl_jax.train", f"--config={ROW}:row=rlvr_after", f"--workdir={tmp_path / 'b'}"),
    *("--config.seed=3", f"--config.init_from={tmp_path / 'a'}"),
  )


@pytest.mark.parametrize(
  "file, overrides, message",
  [
    (f"{ROW}:row=ppo", [], "config argument row='ppo': use one of srl, srl_no_filter"),
    (ROW, ["--config.sede=1"], "miniature_row.py: .*seed"),
    (ROW, ["--config.seed=x"], "miniature_row.py: .*--config.seed=x"),
    (ROW, ["--config.batch.prompts=0"], "batch.prompts: 0 must be greater than 0"),
  ],
)
def test_a_wrong_config_is_found_before_anything_starts(tmp_path, file, overrides, message):
  with pytest.raises(ValueError, match=message) as raised:
    stages.training("a", file, overrides, tmp_path)
  assert "Traceback" not in str(raised.value)


def test_an_evaluation_is_finished_when_its_table_has_all_benchmarks(tmp_path):
  make = lambda *names: stages.evaluation("e", "model", tmp_path, names, ["--samples=2"], ("a",))
  assert not make("amc23").finished()
  for damage in (b"", bytes(20), b"{}", b"[]"):
    (tmp_path / "table.json").write_bytes(damage)
    assert not make("amc23").finished()
  (tmp_path / "table.json").write_text(json.dumps({"benchmarks": {"amc23": {}, "mine": {}}}))
  assert make("amc23", "folder/mine.jsonl").finished() and not make("amc23", "aime24").finished()
  assert make("amc23").arguments == (
    *("srl_jax.evaluate", "--model=model", f"--output={tmp_path}", "--benchmarks=amc23"),
    "--samples=2",
  )


def test_an_evaluation_by_another_command_is_not_finished(tmp_path):
  """Fewer problems, say: its table looks whole."""
  make = lambda *more: stages.evaluation("e", "model", tmp_path / "e", ["amc23"], more)
  stage = make("--limit=2")
  stage.record.parent.mkdir()
  stage.record.write_text(json.dumps(stage.arguments))
  (tmp_path / "e" / "table.json").write_text(json.dumps({"benchmarks": {"amc23": {}}}))
  assert stage.finished() and not make().finished()


def test_a_stage_notes_its_command_when_it_starts(stage, tmp_path):
  one = dataclasses.replace(stage("a"), record=tmp_path / "folder" / "command.json")
  stages.run([one], tmp_path / "logs")
  assert json.loads(one.record.read_text()) == list(one.arguments)
