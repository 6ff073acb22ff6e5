"""benchmarks.gpu on a machine without a card: its sections run, its page tells what they found."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import gpu

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_tiny_run_of_our_sections(tmp_path):
  command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", f"--output={tmp_path}"]
  command += ["--sections=ceiling,check,update_7b,sampler"]  # torch is not among the requirements
  subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)
  found = json.loads((tmp_path / "gpu.json").read_text())["sections"]
  assert not any("error" in section for section in found.values())
  assert found["check"]["leak"] == 0 and found["check"]["gradient_error"] < 1e-4
  assert found["check"]["groups_unchanged"].count(False) == 1  # the check can fail
  shared, naive = (found[f"update_7b tiny {how}"] for how in ("shared", "naive"))
  assert shared["flops"] < 0.5 * naive["flops"]
  assert shared["tokens_per_second"] > 0 and naive["score_seconds"]
  page = (tmp_path / "gpu.md").read_text()
  assert "x the update without sharing" in page and "| sampler 16 |" in page


def test_an_unknown_section_is_refused(capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["gpu", "--sections=updat"])
  with pytest.raises(SystemExit, match="--sections: updat unknown; there are ceiling"):
    gpu.main()


def test_the_page_holds_failures_and_ratios():
  speed = lambda value: dict(seconds=[1.0], sequence_tokens_per_second=value, tflops=100.0)
  results = dict(
    machine=dict(device="NVIDIA H100 80GB HBM3", platform="gpu", jax="0.11.2"),
    date="2026-01-01",
    sections={
      "update_7b 1500/1000 shared": speed(2000.0),
      "update_7b 1500/1000 naive": speed(1000.0),
      "torch 1500/1000": speed(800.0),
      "sampler 64": dict(error="line\nOut of memory"),
    },
  )
  page = gpu.table(results)
  assert "10.1%" in page  # 100 of 989 TFLOP/s
  assert "update_7b 1500/1000 shared: 2.00 x the update without sharing" in page
  assert "naive: 1.25 x torch" in page and "failed: Out of memory" in page
