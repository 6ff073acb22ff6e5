"""The environment of each peer, made once: `.venv-NAME`, as the launch scripts make theirs."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The packages of each environment, pinned so that a table can be repeated.
PACKAGES = {
  "trl": ["torch==2.13.0", "transformers==5.23.0", "trl==1.16.0"],
  "tunix": ["jax==0.10.2", "flax==0.12.8", "google-tunix==0.1.7"],
}


def python_of(name: str) -> str:
  """Returns the interpreter for a peer; makes its environment first if it is missing.

  Args:
    name: "trl", "tunix", "vllm" (launch/vllm_server.sh makes that one), or "ours".

  Raises subprocess.CalledProcessError when an installation fails.
  """
  if name == "ours":
    return sys.executable
  if name == "vllm":
    subprocess.run([ROOT / "launch" / "vllm_server.sh", "--install-only"], check=True)
    return str(ROOT / ".venv-vllm" / "bin" / "python")
  folder = ROOT / f".venv-{name}"
  python = folder / "bin" / "python"
  # .done is written last: an installation that was interrupted is repeated.
  done, wanted = folder / ".done", " ".join(PACKAGES[name])
  if not done.exists() or done.read_text() != wanted:
    print(f"installing {wanted} in {folder.relative_to(ROOT)}, a few minutes ...", flush=True)
    if not python.exists():
      subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True)
    done.write_text(wanted)
  return str(python)


def variables(name: str) -> dict[str, str]:
  """Environment variables of a peer's process."""
  common = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
  # Without byte code the imports alone take a minute.
  compiled = ROOT / ".cache" / "pycache" / name
  common |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(compiled)}
  if name != "vllm":
    return common
  cores = len(os.sched_getaffinity(0))
  return common | {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}",  # by itself it leaves a core free
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
  }
