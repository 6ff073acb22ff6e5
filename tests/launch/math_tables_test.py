"""Tables 1 to 3: the commands of a dry run, and two rows trained with a tiny model."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from launch import math_tables
from srl_jax.data import arithmetic
from srl_jax.evals import paper

ROOT = pathlib.Path(__file__).resolve().parents[2]


def table(number, *arguments, cwd=ROOT):
  done = subprocess.run(
    [sys.executable, "-m", "launch.math_tables", f"--table={number}", *arguments],
    cwd=cwd,
    env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout, done.stderr


def commands(said):
  return [shlex.split(line) for line in said.splitlines()]


def test_rows_have_configs_and_the_papers_figures():
  assert (
    set(math_tables.ROWS) == set(paper.PAPER) == {r for t in math_tables.TABLES.values() for r in t}
  )
  for name, (_, after) in math_tables.ROWS.items():
    if name not in math_tables.MODELS:
      file = ROOT / "configs" / f"{name}.py"
      assert f'config.init_from = "runs/{after}"' in file.read_text() or not after
    assert len(paper.PAPER[name]) == len(paper.COLUMNS) and after in ("", *math_tables.ROWS)


def test_table_1_dry_run_is_in_order():
  code, said, _ = table(1, "--dry_run", "--workdir=there")
  assert code == 0
  runs = [(c[2], dict(flag.split("=", 1) for flag in c[3:])) for c in commands(said)]
  trained = [f["--workdir"] for module, f in runs if module == "srl_jax.train"]
  names = [
    "sft_reasoning",
    "sft_outline",
    "rlvr_math",
    "sft_rlvr_math",
    "srl_math",
    "srl_rlvr_math",
  ]
  assert trained == [f"there/{name}" for name in names]
  starts = {f["--workdir"]: f.get("--config.init_from") for m, f in runs if m == "srl_jax.train"}
  assert starts["there/sft_rlvr_math"] == "there/sft_outline"
  assert starts["there/srl_rlvr_math"] == "there/srl_math" and starts["there/srl_math"] is None
  measured = [f for module, f in runs if module == "srl_jax.evaluate"]
  assert [f["--samples"] for f in measured] == ["32", "0"] * 8
  assert measured[0]["--model"] == "Qwen/Qwen2.5-7B-Instruct" and measured[0]["--style"] == "plain"
  assert measured[2]["--model"] == "simplescaling/s1.1-7B"
  assert measured[-1]["--model"] == "there/srl_rlvr_math" and "--style" not in measured[-1]
  assert {f["--benchmarks"] for f in measured} == {"amc23,aime24,aime25", "minerva_math"}


def test_dry_run_passes_flags_to_trainings_and_evaluations():
  code, said, _ = table(
    3,
    *(":model=M,data=D.jsonl,tiny", "--dry_run", "--rows=srl_math", "--samples=2", "--greedy="),
    *("--config.mesh=data=1,fsdp=1", "--evaluate.limit=3"),
  )
  (train, evaluate) = commands(said)
  assert code == 0 and train[3].endswith("configs/srl_math.py:model=M,data=D.jsonl,tiny")
  assert train[-1] == "--config.mesh=data=1,fsdp=1" and evaluate[-1] == "--limit=3"


@pytest.mark.parametrize(
  "arguments, message",
  [
    (
      ["--rows=sft_outline"],
      "sft_outline",
    ),
    ([":modl=x"], "config argument 'modl' is unknown"),
    (["--config.sede=1"], "seed"),
    (["--sampels=1"], "sampels"),
  ],
)
def test_dry_run_refuses_mistakes_in_one_line(arguments, message):
  code, said, complaint = table(2, "--dry_run", *arguments)
  assert (code, said) == (2, "") and complaint.count("\n") == 1 and message in complaint


@pytest.mark.slow
def test_table_trains_two_rows_and_does_not_repeat_them(tmp_path):
  """SRL and RLVR after it, on the built-in problems written as a dataset of the paper's columns."""
  rows = [
    dict(question=p.text, deepseek_attempt="\n".join(p.steps), solution=p.answer)
    for p in arithmetic.problems("train", 24)
  ]
  (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  tests = [dict(problem=p.text, answer=p.answer) for p in arithmetic.problems("test", 3)]
  (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
  arguments = [f":model={ROOT / 'configs' / 'miniature'},data=data.jsonl,tiny", "--workdir=runs"]
  arguments += ["--rows=srl_rlvr_math", "--sampled=mine.jsonl", "--greedy=", "--samples=2"]
  arguments += ["--config.train.steps=2", "--config.eval.max_tokens=64"]
  arguments += ["--config.data.max_prompt_tokens=160"]  # the miniature has 256 positions
  code, said, complaint = table(1, *arguments, cwd=tmp_path)
  assert code == 0, said + complaint
  assert "SRL, then RLVR" in said and "28.3" in (tmp_path / "runs" / "table1.txt").read_text()
  second = json.loads((tmp_path / "runs" / "srl_rlvr_math" / "config.json").read_text())
  assert second["init_from"] == "runs/srl_math" and second["method"] == "rlvr"
  again = table(1, *arguments, cwd=tmp_path)
  assert again[0] == 0 and again[1].count("is finished") == 3
