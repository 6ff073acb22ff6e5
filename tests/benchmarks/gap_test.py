"""The host's share of a step, read from a trace."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gap import Span, of_host, pauses

ROOT = Path(__file__).resolve().parents[2]


def test_a_pause_is_the_hosts_until_the_next_program_is_handed_over():
  """Of three pauses, XLA makes the first: b was handed over while a ran."""
  runs = [Span(0, 10, "a"), Span(2, 4, "part of a"), Span(11, 20, "b"), Span(23, 30, "c")]
  runs.append(Span(34, 40, "d"))
  calls = [Span(0, 1, "to a"), Span(5, 6, "to b"), Span(22, 22.5, "to c")]
  calls.append(Span(29, 31, "to d"))  # begun before c had ended, but it lasts into the pause
  idle = pauses(runs)
  assert idle == [(10, 11), (20, 23), (30, 34)]
  assert of_host(idle, calls) == [("to b", "to c", 3), ("to d", "to d", 4)]


@pytest.mark.slow
def test_a_trace_of_this_jax_can_be_read():
  command = [sys.executable, "-m", "benchmarks.gap", "--first=2", "--last=4"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  (line,) = [line for line in done.stdout.splitlines() if line.startswith("| 3-4 |")]
  _, _, milliseconds, idle, host, longest, _ = (part.strip() for part in line.split("|"))
  assert float(milliseconds) > 0 and float(longest.removesuffix(" ms")) > 0
  assert 0 < float(host.removesuffix(" %")) <= float(idle.removesuffix(" %")) < 100
  assert "decode" in done.stdout.split("before | ms a step |")[1]
