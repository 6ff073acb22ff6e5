"""The stages of a table with small fake commands: order, resuming, failures, signals."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import stages
from srl_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]

# python -m work FOLDER NAME UNTIL: notes that it was started, works until UNTIL is noted, writes
# NAME. As our commands do, it ends at once if it has been finished before, and with code 0 and
# without its result when it is interrupted.
WORK = """
import pathlib, signal, sys, time
folder, name, until = pathlib.Path(sys.argv[1]), *sys.argv[2:]
stop = []
signal.signal(signal.SIGINT, lambda *_: stop.append(1))
def note(what):
  with (folder / "notes").open("a") as file:
    file.write(f"{what} {name}\\n")
if (folder / name).exists():
  sys.exit()
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
  """stage(name, after="", until="") -> a stage with a fake command."""
  (tmp_path / "work.py").write_text(WORK)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))

  def make(name, after="", until=""):
    return stages.Stage(name, ("work", str(tmp_path), name, until), tmp_path / name, after)

  return make


def notes(folder):
  return (folder / "notes").read_text().splitlines() if (folder / "notes").exists() else []


def test_run_keeps_the_order_and_continues_after_what_is_finished(stage, tmp_path):
  table = [stage("a"), stage("b", "a"), stage("c", "b")]
  (tmp_path / "a").write_text("")
  stages.run(table, tmp_path / "logs")
  assert notes(tmp_path) == ["start b", "end b", "start c", "end c"]
  stages.run(table, tmp_path / "logs")
  assert len(notes(tmp_path)) == 4


def test_run_starts_stages_side_by_side_unless_one_needs_another(stage, tmp_path):
  # Both wait until the other has begun; d waits for a free place.
  table = [stage("a", until="start c"), stage("b", "a"), stage("c", until="start a"), stage("d")]
  stages.run(table, tmp_path / "logs", jobs=2)
  noted = notes(tmp_path)
  assert set(noted[:2]) == {"start a", "start c"}
  assert noted.index("start b") > noted.index("end a") and "end d" in noted
  assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
    f"{name}.log" for name in "abcd"
  ]


def test_run_stops_the_others_when_a_stage_fails(stage, tmp_path):
  table = [stage("slow", until="never"), stage("broken", until="start slow")]
  table += [stage("after", "broken")]
  with pytest.raises(UserError, match=r"broken: .*code 3.*broken\.log"):
    stages.run(table, tmp_path / "logs", jobs=2)
  assert (tmp_path / "logs" / "broken.log").read_text() == "it broke\n"
  assert notes(tmp_path)[-1] == "stop slow" and "start after" not in notes(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_passes_a_signal_on_and_can_be_repeated(stage, tmp_path, number):
  slow = stage("slow", until="never")
  code = (
    f"import pathlib; from launch import stages; folder = pathlib.Path({str(tmp_path)!r});"
    f"stages.run([stages.Stage('slow', {slow.arguments!r}, folder / 'slow')], folder)"
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
  table.communicate(timeout=60)
  assert table.returncode == 130
  assert notes(tmp_path) == ["start slow", "stop slow"]
  stages.run([stage("slow")], tmp_path)
  assert notes(tmp_path)[2:] == ["start slow", "end slow"]


# ---- trainings and evaluations

ROW = str(stages.CONFIGS / "miniature_row.py")


def test_training_starts_from_the_stage_before(tmp_path):
  second = stages.training("b", f"{ROW}:row=rlvr_after", ["--config.seed=3"], tmp_path, "a")
  assert (second.after, second.result) == ("a", tmp_path / "b" / "summary.json")
  assert second.arguments == (
    *("srl_jax.train", f"--config={ROW}:row=rlvr_after", f"--workdir={tmp_path / 'b'}"),
    *("--config.seed=3", f"--config.init_from={tmp_path / 'a'}"),
  )


@pytest.mark.parametrize(
  "file, overrides, named",
  [
    (f"{ROW}:row=ppo", [], "row='ppo'"),
    (ROW, ["--config.sede=1"], "seed"),
    (ROW, ["--config.seed=x"], "--config.seed=x"),
    (ROW, ["--config.batch.prompts=0"], "batch.prompts: 0"),
  ],
)
def test_training_refuses_a_wrong_config(tmp_path, file, overrides, named):
  with pytest.raises(UserError) as raised:
    stages.training("a", file, overrides, tmp_path)
  assert named in str(raised.value) and "Traceback" not in str(raised.value)


def test_evaluation_has_all_flags(tmp_path):
  names = ("amc23", "folder/mine.jsonl")
  made = stages.evaluation("e", "model", tmp_path, names, ["--samples=2"], "a")
  assert (made.after, made.result) == ("a", tmp_path / "table.json")
  assert made.arguments == (
    *("srl_jax.evaluate", "--model=model", f"--output={tmp_path}"),
    *("--benchmarks=amc23,folder/mine.jsonl", "--samples=2"),
  )
