"""What the benchmarks refuse, before they measure anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, host
from benchmarks.peers import __main__ as peers

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("--output=tests", "--output=not_there/page.md")


@pytest.mark.parametrize(
  "command, arguments, said",
  [
    (peers, ["--cases=nonsense"], "nonsense unknown; there are update,sample,reward"),
    (peers, ["--shapes=tiny,7B"], "7B unknown; there are tiny,135M"),
    (peers, ["--cases="], "nothing named; there are update"),
    *((peers, [wrong], "cannot be written; name a file") for wrong in FOLDERS),
    *((host, ["--tokenizer=x", wrong], "cannot be written; name a file") for wrong in FOLDERS),
    (host, ["--tokenizer=x", "--cases=nonsense"], "nonsense unknown; there are SRL, math;"),
    (host, ["--tokenizer=x", "--samples=1"], "'1' is not a whole number of at least 2"),
    (gpu, ["--tiny", "--output=README.md"], "--output: "),
  ],
)
def test_refused_before_anything_runs(monkeypatch, capsys, command, arguments, said):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
  with pytest.raises(SystemExit) as ended:
    command.main()
  assert said in (capsys.readouterr().err or str(ended.value))


@pytest.mark.parametrize(
  "arguments, said",
  [
    (["host", "--tokenizer=not_there"], "not_there has no tokenizer.json"),
    (["vllm", "--model=not_there", "--server=http://127.0.0.1:1"], "not_there"),
    (["same_tokens", "not_there", "not_there"], "not_there: no */greedy.rollouts.jsonl"),
  ],
)
def test_one_line_on_what_is_not_there(arguments, said):
  name, *rest = arguments
  done = subprocess.run(
    [sys.executable, "-m", f"benchmarks.{name}", *rest],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  lines = done.stderr.splitlines()
  assert done.returncode == 2 and lines[-1].startswith("error: ") and said in lines[-1]
  assert "Traceback" not in done.stderr
