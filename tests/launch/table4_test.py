"""launch/table4.sh: the commands that it would start."""

import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def table4(*flags):
  script = ROOT / "launch" / "table4.sh"
  return subprocess.run([script, *flags], capture_output=True, text=True, cwd=ROOT)


def test_table4_dry_run_prints_the_commands():
  """Each row is evaluated, both settings are judged, and the table is the last."""
  flags = ["--rows=base=DIR,srl=runs/srl_swe", "--output=out", "--data=rows.jsonl"]
  flags += ["--evaluate.limit=2", "--judge.by=sandbox", "--judge.workers=3"]
  done = table4("--dry-run", *flags)
  assert done.returncode == 0, done.stderr
  commands = [shlex.split(line) for line in done.stdout.splitlines()]
  assert commands[0][0].endswith("swe_repositories.sh")
  modules = [command[2].removeprefix("srl_jax.") for command in commands[1:]]
  judged = ["evaluate_swe", "evals.swe.judge", "evals.swe.judge"]
  assert modules == [*judged, *judged, "evals.swe.table"]
  assert {"--model=DIR", "--output=out/base", "--limit=2"} <= set(commands[1])
  predictions = "--predictions=out/base/oracle/predictions.jsonl"
  assert {predictions, "--by=sandbox", "--workers=3", "--data=rows.jsonl"} <= set(commands[2])
  assert "--evaluations=base=out/base,srl=out/srl" in commands[-1]
  assert "--model=runs/srl_swe" in commands[4]


@pytest.mark.parametrize("flag", ["--rows=base,srl", "--rows=base=", "--tiny"])
def test_table4_refuses_bad_flags(flag):
  done = table4("--dry-run", flag)
  assert done.returncode == 2 and done.stderr.startswith("error: ") and not done.stdout


def test_table4_starts_the_commands(call, checkout):
  """Without --dry-run, on fakes that print what they are given."""
  (checkout / "srl_jax" / "evals" / "swe").mkdir(parents=True)
  for name in ("evaluate_swe", "evals/swe/judge", "evals/swe/table"):
    (checkout / "srl_jax" / f"{name}.py").write_text("import sys\nprint(*sys.argv[1:])\n")
  (checkout / "launch" / "swe_repositories.sh").write_text('#!/bin/bash\nmkdir -p "$1"\n')
  done = call("table4.sh", "--rows=base=DIR", "--repositories=clones", "--output=out")
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stdout.splitlines() if line.startswith("--")]
  assert lines[0] == "--model=DIR --repositories=clones --output=out/base"
  for line, setting in zip(lines[1:], ("oracle", "end_to_end")):
    assert f"--output=out/base/{setting}" in line and line.endswith("--by=docker")
  assert lines[3:] == ["--evaluations=base=out/base --output=out/table4.txt"]
