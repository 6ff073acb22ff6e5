"""The command: what it writes and says, what it refuses, and --watch."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.reporting.runs import group_line, metrics_line, write_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.integration


def report(*flags, cwd=ROOT, **options):
  command = [sys.executable, "-m", "srl_jax.report", *flags]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, **options)


def test_it_writes_one_file_and_names_what_is_damaged(tmp_path):
  write_run(tmp_path / "a", {1: [group_line(["x", "y"])]})
  with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 2, "rew')
  done = report(f"--workdirs={tmp_path}/a")
  assert done.returncode == 0, done.stderr
  assert "metrics.jsonl: line 2" in done.stdout
  written = (tmp_path / "a" / "report.html").read_text("utf-8")
  assert written.startswith("<!doctype html>") and len(written) < 12e6
  assert not list((tmp_path / "a").glob("*.partial"))


def test_several_runs_are_written_to_the_current_folder(tmp_path):
  for name in "ab":
    write_run(tmp_path / name, {}, summary={})
  done = report(f"--workdirs={tmp_path}/a,{tmp_path}/b", "--quiet", cwd=tmp_path)
  assert (done.returncode, done.stdout) == (0, ""), done.stderr
  assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
  "flags, named",
  [
    ([], "workdirs"),
    (["--workdirs=nowhere"], "nowhere"),
    (["--workdirs=a,a"], "twice"),
    (["--workdirs=a", "--output=a"], "--output=a"),
  ],
)
def test_bad_input_is_one_line(tmp_path, flags, named):
  write_run(tmp_path / "a", {})
  done = report(*flags, cwd=tmp_path)
  assert done.returncode == 2 and done.stderr.count("\n") == 1 and named in done.stderr


def test_it_does_not_import_jax():
  code = "import sys, srl_jax.report; sys.exit('jax' in sys.modules or 'plotly' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_watch_writes_again_and_ends_with_the_run(tmp_path):
  write_run(tmp_path / "a", {1: [group_line(["x", "y"])]})
  code = "from srl_jax import command_line, report; report.SECONDS = 0.1;"
  code += "command_line.run(report.main, report.flags.values)"
  command = [sys.executable, "-c", code, f"--workdirs={tmp_path}/a", "--watch"]
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  try:
    assert process.stdout.readline().startswith("wrote")
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
      file.write(json.dumps(metrics_line(77)) + "\n")
    assert process.stdout.readline().startswith("wrote")
    assert ",77]" in (tmp_path / "a" / "report.html").read_text("utf-8")
    (tmp_path / "a" / "summary.json").write_text("{}")
    assert process.wait(timeout=60) == 0
  finally:
    if process.poll() is None:
      process.send_signal(signal.SIGKILL)
    process.stdout.close()
