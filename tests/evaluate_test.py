"""The evaluate command on small models with random weights."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from srl_jax import folders
from srl_jax.evals import math_benchmarks
from srl_jax.learner.checkpoint import Checkpoints, Progress
from srl_jax.learner.update import TrainState
from srl_jax.policy import hf_files, weights
from srl_jax.policy import model as M
from srl_jax.policy.sharding import make_mesh

ROOT = pathlib.Path(__file__).resolve().parents[1]
MINIATURE = ROOT / "configs" / "miniature"  # a tokenizer with a chat template


def save_model(folder, model):
  """A model folder with the miniature's tokenizer; `model` is a seed, or the model."""
  config = hf_files.load_config(MINIATURE)
  model = M.init(config, model) if isinstance(model, int) else model
  weights.save_hf(config, model, folder, source=MINIATURE)
  return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return save_model(tmp_path_factory.mktemp("models") / "base", 0)


def evaluate(*flags, code=0):
  """What the command prints; on 8 simulated devices, of which it uses one."""
  done = subprocess.run(
    [sys.executable, "-m", "srl_jax.evaluate", "--mesh=cpu", *flags],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ,
  )
  assert done.returncode == code, done.stderr
  if code:
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
  return done.stdout + done.stderr


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_evaluate_continues_and_refuses_other_settings(base, tmp_path):
  """A second command adds samples and problems and repeats nothing; other settings are refused."""
  output = tmp_path / "out"
  flags = [f"--model={base}", f"--output={output}", "--max_tokens=8"]
  evaluate(*flags, "--benchmarks=arithmetic:2")
  rollouts = output / "arithmetic" / "greedy.rollouts.jsonl"
  before = rollouts.read_text()
  said = evaluate(*flags, "--benchmarks=arithmetic:3", "--samples=2")
  assert f"{base}: mode whole, prompt style plain" in said
  assert rollouts.read_text().startswith(before)
  assert len(read_lines(rollouts)) == 3
  lines = read_lines(output / "arithmetic" / "sampled-2.jsonl")
  questions = math_benchmarks.load_benchmark("arithmetic:3")
  assert [line["problem"] for line in lines] == [question.problem for question in questions]
  assert all(len(line["samples"]) == 2 and line["samples"][0]["responses"] for line in lines)
  table = json.loads((output / "table.json").read_text())
  assert table["settings"]["mode"] == "whole" and table["settings"]["dtype"] == "float32"
  names = {"greedy", "avg_at_2", "pass_at_2", "majority_at_2", "passes"}
  assert table["benchmarks"]["arithmetic"].keys() == names
  assert "mode whole, prompt style plain" in (output / "table.md").read_text()

  said = evaluate(*flags, "--benchmarks=arithmetic:2", "--style=think", code=2)
  assert "style was 'plain', is 'think'" in said and "another --output" in said
  moved = base.rename(tmp_path / "moved")  # the same weights under another name are welcome
  evaluate(f"--model={moved}", *flags[1:], "--benchmarks=arithmetic:2")
  other = save_model(tmp_path / "other", 1)
  said = evaluate(f"--model={other}", *flags[1:], "--benchmarks=arithmetic:2", code=2)
  assert "weights was" in said and f"is '{other}'" in said
  moved.rename(base)


@pytest.mark.slow
def test_evaluate_of_a_workdir_has_the_runs_prompts_and_limits(base, tmp_path):
  """The best checkpoint, stepwise, with the run's own limits."""
  workdir = tmp_path / "run"
  config = {
    "model": str(base),
    "dtype": "float32",
    "prompt": {"style": "think", "system_file": ""},
    "eval": {"max_tokens": 6, "max_turns": 3},
    "data": {"max_prompt_tokens": 90},
  }
  workdir.mkdir()
  (workdir / "config.json").write_text(json.dumps(config))
  checkpoints = Checkpoints(workdir, keep=2)
  with jax.set_mesh(make_mesh("data=1")):
    models = {step: M.init(hf_files.load_config(base), step) for step in (1, 2)}
  for step, score in [(1, 0.9), (2, 0.1)]:
    checkpoints.save(TrainState(step, models[step], np.zeros(1)), Progress(), score)
  checkpoints.close()
  # The output may be the workdir itself, or the folder that has it.
  (workdir / "rollouts").mkdir()
  (workdir / "rollouts" / "step_000001.jsonl").write_text('{"prompt_id": "p"}\n')
  (workdir / "metrics.jsonl").write_text('{"step": 1}\n')
  for place in (workdir, tmp_path):
    evaluate(f"--model={workdir}", f"--output={place}", "--benchmarks=arithmetic:2")
    assert (place / "table.txt").exists() and len(
      read_lines(place / "arithmetic/greedy.jsonl")
    ) == 2
  output = tmp_path / "out"
  flags = [f"--output={output}", "--benchmarks=arithmetic:2", "--mode=stepwise"]
  said = evaluate(f"--model={workdir}", *flags)
  assert f"{workdir}, step 1: mode stepwise, prompt style next step" in said
  assert "at most 6 tokens a response" in said
  best = save_model(tmp_path / "best", models[1])  # the same weights as a folder: the same work
  limits = ["--max_tokens=6", "--max_turns=3", "--max_prompt_tokens=90"]
  evaluate(f"--model={best}", *flags, *limits)
  last = save_model(tmp_path / "last", models[2])
  assert "weights was" in evaluate(f"--model={last}", *flags, *limits, code=2)

  # The prompt of a task that only the run's config file knows has to be given.
  (workdir / "config.json").write_text(json.dumps(config | {"method": "mine"}))
  flags[0] = f"--output={tmp_path}/mine"
  assert "'mine'" in evaluate(f"--model={workdir}", *flags, code=2)
  (tmp_path / "system.txt").write_text("The next step.")
  evaluate(f"--model={workdir}", *flags, f"--system_file={tmp_path}/system.txt")


def test_evaluate_prints_a_finished_table_until_the_weights_change(tmp_path):
  model = save_model(tmp_path / "model", 0)
  output = tmp_path / "out"
  flags = [f"--model={model}", f"--output={output}", "--max_tokens=4", "--benchmarks=arithmetic:1"]
  first = evaluate(*flags)
  table = (output / "table.txt").read_text()
  assert table in first + "\n"
  files = sorted(model.glob("*.safetensors"))
  again = evaluate(*flags)
  assert "is finished" in again and table in again + "\n"
  assert (output / "table.txt").read_text() == table
  assert "is finished" not in evaluate(*flags, "--samples=2")  # a pass more
  assert "is finished" in evaluate(*flags, "--samples=2")
  other = save_model(tmp_path / "other", 1)
  for file in files:  # other weights under the same name
    file.unlink()
    (other / file.name).rename(file)
  assert "weights was" in evaluate(*flags, code=2)


@pytest.mark.parametrize(
  "flags, complaint",
  [
    (["--benchmarks=amc24"], "'amc24' is unknown"),
    (["--benchmarks=none.jsonl"], "none.jsonl does not exist"),
    (["--benchmarks=arithmetic,arithmetic:5"], "two are called 'arithmetic'"),
    (["--benchmarks=arithmetic", "--temperature=0"], "greater than 0"),
    (["--benchmarks=arithmetic", "--engine=vllm"], "--servers"),
    (["--benchmarks=arithmetic", "--mode=stepwise", "--style=plain"], "for --mode=whole"),
  ],
)
def test_evaluate_refuses_bad_flags(base, tmp_path, flags, complaint):
  said = evaluate(f"--model={base}", f"--output={tmp_path}/out", *flags, code=2)
  assert complaint in said
  assert not (tmp_path / "out").exists()


def test_evaluate_refuses_responses_beyond_the_models_positions(base, tmp_path):
  """The value of the message fits, one more does not; nothing is sampled."""
  flags = [f"--model={base}", f"--output={tmp_path}/out", "--benchmarks=arithmetic:2"]
  said = evaluate(*flags, "--max_tokens=300", code=2)
  assert "max_position_embeddings, 256" in said and not (tmp_path / "out").exists()
  room = int(re.search(r"--max_tokens=(\d+)", said)[1])
  assert f"--max_tokens={room}" in evaluate(*flags, f"--max_tokens={room + 1}", code=2)
  limits = ["--mode=stepwise", "--max_prompt_tokens=200", "--max_tokens=100"]
  assert "set --max_prompt_tokens=156" in evaluate(*flags, *limits, code=2)


def test_evaluate_refuses_damaged_and_busy_outputs(base, tmp_path):
  (tmp_path / "damaged").mkdir()
  (tmp_path / "damaged" / "settings.json").write_text("{")
  flags = [f"--model={base}", "--benchmarks=arithmetic:1", "--max_tokens=2"]
  assert "settings.json: not JSON" in evaluate(f"--output={tmp_path}/damaged", *flags, code=2)
  (tmp_path / "damaged" / "settings.json").write_text("[]")
  assert "settings.json: not an eval" in evaluate(f"--output={tmp_path}/damaged", *flags, code=2)
  with folders.locked(tmp_path / "busy"):
    assert f"busy: process {os.getpid()}" in evaluate(f"--output={tmp_path}/busy", *flags, code=2)


def test_evaluate_refuses_a_run_without_a_checkpoint(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("")
  flags = ["--benchmarks=arithmetic", f"--output={tmp_path}/out", f"--model={tmp_path}"]
  assert "a run without a checkpoint" in evaluate(*flags, code=2)


@pytest.mark.slow
def test_evaluate_with_a_real_model(real_models, shared, tmp_path):
  """Two real problems, a few tokens: the files and the engine agree on what was sampled."""
  model = real_models("smollm2-135m")
  flags = [f"--data={shared}/data/math", "--benchmarks=amc23,minerva_math", "--limit=2"]
  flags += ["--dtype=float32", "--max_tokens=16"]
  evaluate(f"--model={model}", f"--output={tmp_path}/out", *flags)
  lines = read_lines(tmp_path / "out" / "amc23" / "greedy.jsonl")
  rollouts = read_lines(tmp_path / "out" / "amc23" / "greedy.rollouts.jsonl")
  sampled = {row["prompt_id"]: row["rollouts"][0]["text"] for row in rollouts}
  assert {line["id"]: line["samples"][0]["responses"][0] for line in lines} == sampled
  assert [line["gold"] for line in lines] == ["27", "36"]
