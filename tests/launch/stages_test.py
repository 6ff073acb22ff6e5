"""The commands of a table, small fake ones: order, resuming, failures, signals."""

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
def command(tmp_path, monkeypatch):
  """command(name, until="") -> a fake command; its work is done when until is noted."""
  (tmp_path / "work.py").write_text(WORK)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))

  def make(name, until=""):
    return {tmp_path / name: [sys.executable, "-m", "work", str(tmp_path), name, until]}

  return make


def notes(folder):
  return (folder / "notes").read_text().splitlines() if (folder / "notes").exists() else []


def test_run_keeps_the_order_and_continues_after_what_is_finished(command, tmp_path):
  table = command("a") | command("b") | command("c")
  (tmp_path / "a").write_text("")
  stages.run(table, dry_run=False)
  assert notes(tmp_path) == ["start b", "end b", "start c", "end c"]
  stages.run(table, dry_run=False)
  assert len(notes(tmp_path)) == 4


def test_run_of_a_dry_run_prints_and_starts_nothing(command, tmp_path, capsys):
  with pytest.raises(SystemExit) as ended:
    stages.run(command("a") | command("b"), dry_run=True)
  assert not ended.value.code and notes(tmp_path) == []
  assert [line.split()[4] for line in capsys.readouterr().out.splitlines()] == ["a", "b"]


def test_run_stops_at_a_command_that_fails(command, tmp_path):
  with pytest.raises(UserError, match="code 3"):
    stages.run(command("broken") | command("after"), dry_run=False)
  assert notes(tmp_path) == ["start broken"]


def test_run_stops_at_a_command_that_was_stopped(command, tmp_path):
  """A training that saved and ended with code 0 is not finished: nothing that needs it starts."""
  unfinished = {tmp_path / "other": [*command("a")[tmp_path / "a"]]}
  with pytest.raises(UserError, match="code 0"):
    stages.run(unfinished | command("after"), dry_run=False)
  assert notes(tmp_path) == ["start a", "end a"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_passes_a_signal_on_and_can_be_repeated(command, tmp_path, number):
  ((result, slow),) = command("slow", until="never").items()
  code = (
    "import pathlib; from launch import stages;"
    f"stages.run({{pathlib.Path({str(result)!r}): {slow!r}}}, dry_run=False)"
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
  stages.run(command("slow"), dry_run=False)
  assert notes(tmp_path)[2:] == ["start slow", "end slow"]


# ---- trainings and evaluations

ROW = str(stages.CONFIGS / "miniature_row.py")


def test_train_starts_from_the_training_before(tmp_path):
  made = stages.train(f"{ROW}:row=rlvr_after", tmp_path / "b", ["--config.seed=3"], tmp_path / "a")
  ((result, words),) = made.items()
  assert result == tmp_path / "b" / "summary.json"
  assert words[2:] == [
    *("srl_jax.train", f"--config={ROW}:row=rlvr_after", f"--workdir={tmp_path / 'b'}"),
    *("--config.seed=3", f"--config.init_from={tmp_path / 'a'}"),
  ]


@pytest.mark.parametrize(
  "file, overrides, named",
  [
    (f"{ROW}:row=ppo", [], "row='ppo'"),
    (ROW, ["--config.sede=1"], "seed"),
    (ROW, ["--config.seed=x"], "--config.seed=x"),
    (ROW, ["--config.batch.prompts=0"], "batch.prompts: 0"),
  ],
)
def test_train_refuses_a_wrong_config(tmp_path, file, overrides, named):
  with pytest.raises(UserError) as raised:
    stages.train(file, tmp_path / "a", overrides)
  assert named in str(raised.value) and "Traceback" not in str(raised.value)


def test_evaluate_has_all_flags(tmp_path):
  names = ("amc23", "folder/mine.jsonl")
  ((result, words),) = stages.evaluate("model", tmp_path, names, ["--samples=2"]).items()
  assert result == tmp_path / "table.json"
  assert words[2:] == [
    *("srl_jax.evaluate", "--model=model", f"--output={tmp_path}"),
    *("--benchmarks=amc23,folder/mine.jsonl", "--samples=2"),
  ]
