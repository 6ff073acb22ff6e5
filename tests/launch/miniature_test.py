"""The miniature's stages: which rows, seeds and bases, in which order, with which limits."""

import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def dry_run(*arguments):
  """[(module, flags)] of the commands of a dry run."""
  done = subprocess.run(
    [sys.executable, "-m", "launch.miniature", "--dry_run", "--workdir=W", *arguments],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  lines = [shlex.split(line) for line in done.stdout.splitlines()]
  return [(line[2], dict(flag.split("=", 1) for flag in line[3:])) for line in lines]


def test_dry_run_has_all_rows_with_their_seeds_and_bases():
  stages = dry_run()
  trained = {f["--workdir"][2:]: f for module, f in stages if module == "srl_jax.train"}
  order = list(trained)
  assert sum(name.startswith("srl-") for name in order) == 5
  assert sum(name.startswith("rlvr-") for name in order) == 3
  for seed in range(1, 5):  # its base is trained first; rows of one stage start from it
    assert order.index(f"made_base-{seed}") < order.index(f"srl-{seed}")
    assert trained[f"srl-{seed}"]["--config.init_from"] == f"W/made_base-{seed}"
  assert "--config.init_from" not in trained["srl-0"]  # the shipped base
  assert trained["srl_rlvr-2"]["--config.init_from"] == "W/srl-2"
  assert trained["sft_rlvr-0"]["--config.init_from"] == "W/sft_outline-0"
  assert trained["srl_rlvr-2"]["--config"].endswith("miniature_row.py:row=rlvr_after,seed=2")
  assert order.index("srl-0") < order.index("srl_rlvr-0") < order.index("made_base-1")


def test_dry_run_measures_every_model_in_both_modes_alike():
  measured = [
    f for module, f in dry_run("--seeds=1", "--close_seeds=1") if module == "srl_jax.evaluate"
  ]
  assert len(measured) == 20
  for mode, tokens in (("whole", "160"), ("stepwise", "32")):
    alike = [
      {key: value for key, value in f.items() if key not in ("--model", "--output")}
      for f in measured
      if f["--mode"] == mode
    ]
    assert len(alike) == 10 and all(f == alike[0] for f in alike)
    assert alike[0]["--max_tokens"] == tokens and alike[0]["--benchmarks"] == "arithmetic:200"
    assert alike[0]["--samples"] == "8" and alike[0]["--style"] == "think"


def test_dry_run_is_shorter_with_steps_seeds_and_arms():
  stages = dry_run("--seeds=1", "--close_seeds=1", "--steps=400", "--arms=srl_rlvr,one_step")
  configs = [f["--config"].partition(":")[2] for m, f in stages if m == "srl_jax.train"]
  assert configs == [
    *("row=one_step,seed=0,steps=400", "row=srl,seed=0,steps=400"),
    "row=rlvr_after,seed=0,steps=400",
  ]
