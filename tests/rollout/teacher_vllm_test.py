"""The teacher command against our own vLLM server with a real model.

It runs before the other tests of that server, which give it other weights and finally kill it.
"""

import collections
import json
import os
import subprocess
import sys

import pytest
from vllm_processes import ROOT

from srl_jax.data import solutions

pytestmark = pytest.mark.slow

PROBLEMS = {"easy": ("What is 2 + 3?", "5"), "hard": ("What is the 10,000th prime?", "104729")}


def lines(path):
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_teacher_queries_a_vllm_server_once(servers, tmp_path):
  rows = [dict(id=id, problem=text, answer=gold) for id, (text, gold) in PROBLEMS.items()]
  (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  command = [sys.executable, "-m", "srl_jax.teacher", f"--server={servers['real'].wait().url}"]
  command += ["--model=policy", "--problems=problems.jsonl", "--output=out", "--attempts=2"]
  command += ["--fields=problem=problem,answer=answer,id=id", "--max_tokens=160"]
  run = lambda: subprocess.run(
    command,
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  done = run()
  assert done.returncode == 0, done.stderr
  attempts = lines(tmp_path / "out" / "attempts.jsonl")
  solved = {attempt["id"] for attempt in attempts if attempt["reason"] is None}
  tried = collections.Counter(attempt["id"] for attempt in attempts)
  assert tried.keys() == PROBLEMS.keys() and all(tried[id] == 2 for id in tried.keys() - solved)
  assert all(attempt["text"].strip() for attempt in attempts)  # it spoke
  kept = lines(tmp_path / "out" / "solutions.jsonl")
  assert {row["id"] for row in kept} == solved
  assert all(len(solutions.split_steps(row["solution"])) >= 2 for row in kept)
  assert run().returncode == 0 and lines(tmp_path / "out" / "attempts.jsonl") == attempts
