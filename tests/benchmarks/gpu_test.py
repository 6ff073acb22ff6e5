"""benchmarks.gpu on a machine without a card: its sections run, and its page has their figures."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks.gpu.__main__ import main, run_section
from benchmarks.gpu.profile import seconds_by_kind
from benchmarks.gpu.table import table
from srl_jax.data import arithmetic

ROOT = pathlib.Path(__file__).resolve().parents[2]
MACHINE = dict(
  device="NVIDIA H100 80GB HBM3",
  platform="gpu",
  driver="580.1",
  versions={"jax": "0.11.2", "torch": None},
)


# A card's machine has only jax, flax, optax, torch and transformers, with what these import.
MISSING = ("cydifflib", "datasets", "tensorboardX", "orbax", "latex2sympy2_extended")


def run_tiny(tmp_path, names, **environment):
  """(sections of the JSON file, the page) of a tiny run of the sections `names`."""
  command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", f"--output={tmp_path}"]
  environment = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
  subprocess.run([*command, "--sections", *names.split(",")], cwd=ROOT, env=environment, check=True)
  found = json.loads((tmp_path / "gpu.json").read_text())["sections"]
  assert not any("error" in section for section in found.values()), found
  return found, (tmp_path / "gpu_run.md").read_text()


@pytest.mark.slow
def test_gpu_runs_our_sections_where_little_is_installed(tmp_path):
  """`import` of what is missing there fails in every section: Python runs sitecustomize first."""
  hide = f"import sys\nsys.modules |= dict.fromkeys({MISSING})\n"
  (tmp_path / "sitecustomize.py").write_text(hide)
  names = "ceiling,update_7b,update_7b_matmuls,update_7b_full,update_7b_chunks,sampler"
  found, page = run_tiny(tmp_path, names, PYTHONPATH=str(tmp_path))
  shared, naive = (found[f"update_7b tiny {how}"] for how in ("shared", "naive"))
  assert shared["flops"] < 0.5 * naive["flops"]
  assert shared["tokens_per_second"] > 0 and shared["estimated_bytes"] > 0
  assert "x the update without sharing" in page and "| sampler 16 |" in page
  assert page.count("x the update by default") == 3
  assert "| log-probs of update_7b tiny naive |" in page


@pytest.mark.slow
def test_gpu_runs_the_sampler_with_long_limits(tmp_path):
  found, page = run_tiny(tmp_path, "decode_limit,decode_stops")
  assert all(found[f"decode_limit {limit} 16"]["mean_tokens"] == 12 for limit in (16, 1024))
  assert 6 < found["decode_stops 1024 16"]["mean_tokens"] < 24
  assert "| decode_limit 1024 16 |" in page and "| decode_stops 1024 16 |" in page


@pytest.mark.slow
def test_gpu_runs_torch(tmp_path):
  pytest.importorskip("torch")
  found, page = run_tiny(tmp_path, "torch")
  assert found["torch tiny"]["sequence_tokens_per_second"] > 0
  assert "| torch tiny (not compiled) |" in page


def test_run_section_returns_an_error_when_it_is_late_or_fails(tmp_path):
  late = run_section("ceiling", True, 0.01, tmp_path)
  assert list(late) == ["error"]
  unknown = run_section("no such section", True, None, tmp_path)
  assert "KeyError" in unknown["error"]


def test_main_refuses_an_unknown_section(capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["gpu", "--sections", "updat"])
  with pytest.raises(SystemExit) as ended:
    main()
  said = capsys.readouterr().err
  assert ended.value.code == 2 and "--sections: invalid choice: 'updat'" in said


def test_main_refuses_an_output_that_is_a_file(monkeypatch, tmp_path):
  (tmp_path / "file").touch()
  monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", f"--output={tmp_path / 'file'}"])
  with pytest.raises(FileExistsError):
    main()


def test_profile_sums_the_kernels_of_streams_by_kind():
  thread = lambda tid, name: {"name": "thread_name", "pid": 1, "tid": tid, "args": {"name": name}}
  event = lambda tid, name, dur: {"ph": "X", "pid": 1, "tid": tid, "name": name, "dur": dur}
  events = [thread(1, "Stream #13(compute)"), thread(2, "python")]
  events += [
    event(1, "nvjet_tst_128x256_NNT", 3000),
    event(1, "gemm_fusion_dot_12", 1000),
    event(1, "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma", 500),
    event(1, "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma", 250),
    event(1, "memcpy32_post", 125),
    event(1, "loop_add_fusion_3", 50),
    event(2, "nvjet of the host", 9000),
  ]
  assert seconds_by_kind(events) == {
    "matrix products": 4e-3,
    "attention, backward": 5e-4,
    "attention, forward": 2.5e-4,
    "copies": 1.25e-4,
    "other elementwise": 5e-5,
  }


def test_table_has_failures_ratios_and_memory():
  speed = lambda value, **more: dict(
    seconds=[1.0], sequence_tokens_per_second=value, tflops=100.0, **more
  )
  results = dict(
    machine=MACHINE,
    tiny=False,
    date="2026-01-01",
    sections={
      "update_7b 1500/1000 shared": speed(
        2000.0,
        peak_bytes=63 * 2**30,
        estimated_bytes=60 * 2**30,
        score_seconds=[0.5],
        score_tflops=200.0,
      ),
      "update_7b 1500/1000 naive": speed(1000.0, copied_tflops=110.0, kinds={"copies": 0.0754}),
      "update_7b_matmuls 1500/1000 shared": speed(2400.0),
      "torch 1500/1000": speed(800.0, compiled=False),
      "sampler 64": dict(error="line\nOut of memory"),
    },
  )
  page = table(results)
  assert "driver 580.1, jax 0.11.2, torch none" in page
  assert "10.1%" in page  # 100 of 989 TFLOP/s
  assert "| 63.0 | 60.0 | 1.05 |" in page
  assert "| log-probs of update_7b 1500/1000 shared | 0.5 | 200.0 | 20.2% |  |" in page
  assert "update_7b 1500/1000 shared: 2.00 x the update without sharing" in page
  assert "update_7b_matmuls 1500/1000 shared: 1.20 x the update by default" in page
  assert "| 1 | 100.0 | 10.1% | 11.1% |" in page and "| copies | 75 |" in page
  assert "naive: 1.25 x torch" in page and "failed: Out of memory" in page
  assert "update_7b_matmuls 1500/1000 shared: 3.00 x torch" in page
  assert "| torch 1500/1000 (not compiled) |" in page


@pytest.mark.slow
def test_gpu_measures_a_real_run(tmp_path):
  (tmp_path / "model").symlink_to(ROOT / "configs" / "miniature")
  rows = [
    {"problem": problem.text, "solution": "\n".join(problem.steps), "answer": problem.answer}
    for problem in arithmetic.problems("train", 8)
  ]
  (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
  command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", f"--real={tmp_path}"]
  command += ["--config.data.max_prompt_tokens=160", "--config.rollout.max_tokens=40"]
  command += ["--config.prompt.example=False", "--config.prompt.open_think=False"]
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "3 steps in " in done.stdout and " 0 of them from step 3 on" in done.stdout
  assert re.search(r"\| reward_mean \| -?\d\.\d+ \| -?\d\.\d+ \|", done.stdout)
  assert "| seconds_update |" in done.stdout
