"""The comparison of two engines' greedy responses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def write(folder, tokens, logprobs, id="p0"):
  (folder / "amc23").mkdir(parents=True)
  row = {
    "prompt_id": id,
    "rollouts": [{"token_ids": tokens, "sampler_logprobs": logprobs}],
  }
  (folder / "amc23" / "greedy.rollouts.jsonl").write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize(
  "tokens, logprobs, code, said",
  [
    ([1, 2, 3], [-0.1, -0.7, -0.1], 0, "| amc23 | 1 | 1 |  |"),
    ([1, 5, 3], [-0.1, -0.7004, -0.1], 0, "| amc23 | 1 | 0 | p0: 1 (4.0e-04) |"),
    ([1, 5, 3], [-0.1, -0.72, -0.1], 1, "p0: 1 (2.0e-02)"),
    ([1, 2], [-0.1, -0.7], 1, "p0: 2 (inf)"),
  ],
)
def test_same_tokens_finds_where_responses_part(tmp_path, tokens, logprobs, code, said):
  write(tmp_path / "a", [1, 2, 3], [-0.1, -0.7, -0.1])
  write(tmp_path / "b", tokens, logprobs)
  command = [sys.executable, "-m", "benchmarks.same_tokens", tmp_path / "a", tmp_path / "b"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == code and said in done.stdout


@pytest.mark.parametrize(
  "row, said",
  [
    (None, "greedy.rollouts.jsonl"),
    ({"id": "p0"}, "greedy.rollouts.jsonl:1: no response of srl_jax.evaluate"),
    ({"prompt_id": "p9", "rollouts": []}, "have other problems of amc23"),
  ],
)
def test_same_tokens_refuses_folders_that_do_not_match(tmp_path, row, said):
  write(tmp_path / "a", [1], [-0.1])
  file = tmp_path / "b" / "amc23" / "greedy.rollouts.jsonl"
  file.parent.mkdir(parents=True)
  if row:
    file.write_text(json.dumps(row) + "\n")
  command = [sys.executable, "-m", "benchmarks.same_tokens", tmp_path / "a", tmp_path / "b"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
