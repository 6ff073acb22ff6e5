"""A run's checkpoint as a Hugging Face folder."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from srl_jax import export
from srl_jax.data import arithmetic_tokenizer
from srl_jax.data.tokenizer import load_tokenizer, stop_ids
from srl_jax.errors import UserError
from srl_jax.learner.checkpoint import Checkpoints, Progress
from srl_jax.learner.update import TrainState
from srl_jax.policy import model as M
from srl_jax.policy import weights
from srl_jax.policy.sharding import make_mesh

CONFIG = M.ModelConfig(96, 32, 48, 2, 2, 1, 16)
ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(workdir, {step: weights}) of a run on a mesh; the best of its steps 2, 4, 6 is 4."""
  base, workdir = tmp_path_factory.mktemp("run") / "base", tmp_path_factory.mktemp("run")
  weights.save_hf(CONFIG, M.init(CONFIG, 0), base)
  arithmetic_tokenizer.save(base)
  settings = json.loads((base / "tokenizer_config.json").read_text())
  # As base models do: their end of text is not the end of a turn that the template writes.
  settings["eos_token"] = arithmetic_tokenizer.PAD
  (base / "tokenizer_config.json").write_text(json.dumps(settings))
  (base / "generation_config.json").write_text('{"eos_token_id": 7, "max_new_tokens": 60}')
  (workdir / "config.json").write_text(json.dumps(dict(model=str(base), dtype="float32")))
  checkpoints = Checkpoints(workdir, keep=3)
  with jax.set_mesh(make_mesh("data=2,fsdp=4")):
    models = {step: M.init(CONFIG, step) for step in (2, 4, 6)}
    for step, score in [(2, 0.1), (4, 0.9), (6, 0.5)]:
      checkpoints.save(TrainState(step, models[step], np.zeros(1)), Progress(), score)
  checkpoints.close()
  return workdir, {step: jax.tree.leaves(model) for step, model in models.items()}


@pytest.mark.parametrize("step, dtype", [(None, None), (6, None), (2, "bfloat16")])
def test_export_writes_the_checkpoints_weights(run, tmp_path, step, dtype):
  (workdir, saved), out = run, tmp_path / "out"
  assert export.export(workdir, out, step, dtype) == (step or 4)
  assert json.loads((out / "config.json").read_text())["torch_dtype"] == (dtype or "float32")
  assert (out / "tokenizer.json").exists()
  config, model = weights.load_hf(out)
  assert config == CONFIG.on_platform("cpu")
  for ours, theirs in zip(jax.tree.leaves(model), saved[step or 4]):
    expected = np.asarray(theirs).astype(dtype or "float32").astype("float32")
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_load_hf_refuses_a_damaged_export(run, tmp_path, name):
  """By its checksums, which sha256sum reads too; without them it is loaded as it is."""
  out = tmp_path / "out"
  export.export(run[0], out)
  subprocess.run(["sha256sum", "-c", "SHA256SUMS", "--strict"], cwd=out, check=True)
  names = {line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
  assert names == {path.name for path in out.iterdir()} - {"SHA256SUMS"}
  data = (out / name).read_bytes()
  (out / name).write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
  with pytest.raises(UserError, match=f"{name}: .*SHA256SUMS"):
    weights.load_hf(out)
  (out / name).unlink()
  with pytest.raises(UserError, match=f"{name}: missing"):
    weights.load_hf(out)
  (out / name).write_bytes(data)
  weights.load_hf(out)


def test_load_hf_refuses_damaged_checksums(run, tmp_path):
  export.export(run[0], tmp_path / "out")
  sums = tmp_path / "out" / "SHA256SUMS"
  whole = sums.read_text()
  for text in (whole + "00  ../secret\n", "", "\0" * 80, whole.replace("config.json", "config")):
    sums.write_text(text)
    with pytest.raises(UserError, match="SHA256SUMS: damaged"):
      weights.load_hf(tmp_path / "out")


def test_export_stops_where_the_run_stopped(run, tmp_path):
  """At the end of a turn, at the tokenizer's end of text and at the ends of the base model."""
  export.export(run[0], tmp_path / "out")
  generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
  wanted = [arithmetic_tokenizer.SPECIAL.index(name) for name in ("<|end|>", "<|pad|>")] + [7]
  assert generation == {"eos_token_id": wanted, "max_new_tokens": 60}
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["eos_token_id"] == wanted
  assert stop_ids(load_tokenizer(tmp_path / "out"), tmp_path / "out") == wanted


def test_export_refuses_bad_input(run, tmp_path):
  workdir, _ = run
  with pytest.raises(ValueError, match="step 3.*2, 4, 6"):
    export.export(workdir, tmp_path / "out", 3)
  with pytest.raises(ValueError, match="no run with a checkpoint"):
    export.export(tmp_path, tmp_path / "out")
  with pytest.raises(ValueError, match="exists and is not empty"):
    export.export(workdir, workdir)
  assert not (tmp_path / "out").exists()


def test_export_command_writes_a_folder(run, tmp_path):
  """On a machine with one device, unlike the run's."""
  command = [sys.executable, "-m", "srl_jax.export", f"--output={tmp_path}/out"]
  call = lambda workdir: subprocess.run(
    [*command, f"--workdir={workdir}"],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
  )
  done = call(run[0])
  assert done.returncode == 0, done.stderr
  # On a busy machine there are lines of progress before it.
  assert done.stdout.splitlines()[-1] == f"wrote {tmp_path}/out: step 4 of {run[0]}"
  refused = call(tmp_path / "nothing")
  assert refused.returncode == 2
  assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
