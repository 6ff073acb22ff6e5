"""The command: refusals before a model is loaded, and a small real model on the toy repository."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.evals.swe.conftest import toy  # noqa: F401  the fixture

ROOT = pathlib.Path(__file__).resolve().parents[1]


def evaluate(*flags, code=0):
  done = subprocess.run(
    [sys.executable, "-m", "srl_jax.evaluate_swe", "--mesh=cpu", *flags],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ,
  )
  assert done.returncode == code, done.stderr
  if code:
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
  return done.stdout + done.stderr


@pytest.mark.parametrize(
  "flags, complaint",
  [
    (["--settings=oracle,all"], "--settings=oracle,all"),
    (["--temperature=0"], "greater than 0"),
    (["--engine=vllm"], "--servers"),
    (["--repositories=none"], "no clone of toy/calc"),
    (["--data=none.jsonl"], "none.jsonl does not exist"),
    (["--repair_prompt=none.txt"], "cannot be read"),
  ],
)
def test_evaluate_swe_refuses_bad_flags(toy, tmp_path, flags, complaint):  # noqa: F811
  file, clones = toy
  usual = [f"--data={file}", f"--repositories={clones}", f"--output={tmp_path}/out"]
  model = ROOT / "configs" / "miniature"
  assert complaint in evaluate(f"--model={model}", *usual, *flags, code=2)
  assert not (tmp_path / "out").exists()


def test_evaluate_swe_refuses_rows_without_a_patch(toy, tmp_path):  # noqa: F811
  """The oracle setting has nothing to show; end to end needs no patch."""
  file, clones = toy
  row = json.loads(file.read_text())
  del row["patch"]
  (tmp_path / "rows.jsonl").write_text(json.dumps(row))
  flags = [f"--data={tmp_path}/rows.jsonl", f"--repositories={clones}", f"--output={tmp_path}/out"]
  said = evaluate("--model=none", *flags, code=2)
  assert "toy__calc-1 has no patch" in said and "--settings=end_to_end" in said


@pytest.mark.slow
def test_evaluate_swe_with_a_real_model(real_models, toy, tmp_path):  # noqa: F811
  """Both settings; the same command again samples nothing; other settings are refused."""
  model = real_models("smollm2-135m")
  file, clones = toy
  flags = [f"--model={model}", f"--data={file}", f"--repositories={clones}", "--dtype=float32"]
  flags += [f"--output={tmp_path}/out", "--max_prompt_tokens=1500", "--max_tokens=32"]
  said = evaluate(*flags)
  assert "not Table 4" in said and "oracle" in said and "end_to_end" in said
  for setting in ("oracle", "end_to_end"):
    folder = tmp_path / "out" / setting
    prediction = json.loads((folder / "predictions.jsonl").read_text())
    assert prediction["instance_id"] == "toy__calc-1"
    assert prediction["model_name_or_path"] == "smollm2-135m"
    assert {"model_patch", *prediction} == {"instance_id", "model_name_or_path", "model_patch"}
  rollouts = (tmp_path / "out" / "oracle" / "repair.rollouts.jsonl").read_text()
  assert json.loads(rollouts)["rollouts"][0]["text"]
  evaluate(*flags)
  assert (tmp_path / "out" / "oracle" / "repair.rollouts.jsonl").read_text() == rollouts
  assert "style was 'plain'" in evaluate(*flags, "--style=think", code=2)
  assert "prompts was" in evaluate(*flags, f"--repair_prompt={_prompt(tmp_path)}", code=2)


def _prompt(folder):
  (folder / "prompt.txt").write_text("{issue}\n{files}")
  return folder / "prompt.txt"
