"""evaluate_swe against a real vLLM server: the answers of the built-in sampler."""

import json
import os
import subprocess
import sys

import pytest
from vllm_processes import ROOT

from tests.evals.swe.conftest import toy  # noqa: F401  the fixture

pytestmark = pytest.mark.slow


def test_evaluate_swe_has_the_same_answers_with_both_engines(
  servers,
  weights_root,
  real_models,
  toy,  # noqa: F811
  tmp_path,
):
  file, clones = toy
  command = [sys.executable, "-m", "srl_jax.evaluate_swe", f"--model={real_models('smollm2-135m')}"]
  command += [f"--data={file}", f"--repositories={clones}", "--dtype=float32", "--mesh=cpu"]
  command += ["--settings=oracle", "--max_prompt_tokens=960", "--max_tokens=32"]
  engines = {
    "vllm": [f"--servers={servers['real'].wait().url}", f"--weights_root={weights_root}"],
    "builtin": [],
  }
  answers = {}
  for engine, flags in engines.items():
    flags = [*command, f"--output={tmp_path / engine}", f"--engine={engine}", *flags]
    done = subprocess.run(flags, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / engine / "oracle"
    assert json.loads((folder / "predictions.jsonl").read_text())["instance_id"] == "toy__calc-1"
    answers[engine] = json.loads((folder / "repair.rollouts.jsonl").read_text())["rollouts"]
  texts = {engine: rollouts[0]["text"] for engine, rollouts in answers.items()}
  assert texts["vllm"] == texts["builtin"] and texts["vllm"].strip()
