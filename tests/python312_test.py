"""The unit tier on another Python and the newest JAX: Python 3.12 and JAX 0.11."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / ".cache" / "3.12" / ".venv"
PACKAGES = ["-r", "requirements.txt", "jax==0.11.*", "pytest", "pytest-xdist", "hypothesis"]


@pytest.fixture(scope="session")
def python312():
  """The interpreter of an environment that is made once, from pyenv's Python 3.12."""
  versions = sorted(pathlib.Path.home().glob(".pyenv/versions/3.12*/bin/python"))
  if not versions:
    pytest.skip("needs Python 3.12 in ~/.pyenv/versions")
  wanted = " ".join(PACKAGES) + "\n" + (ROOT / "requirements.txt").read_text()
  done = FOLDER / "installed"
  if not done.exists() or done.read_text() != wanted:
    subprocess.run([versions[-1], "-m", "venv", "--clear", FOLDER], check=True)
    install = [FOLDER / "bin" / "pip", "install", "--quiet", *PACKAGES]
    made = subprocess.run(install, cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
      last = (made.stderr.strip() or "no message").splitlines()[-1]
      pytest.skip(f"the environment cannot be made (needs the package index): {last}")
    done.write_text(wanted)
  return FOLDER / "bin" / "python"


@pytest.mark.slow
def test_unit_tier_passes_on_python_312_with_jax_011(python312):
  cache = ROOT / "tests" / ".cache" / "xla-3.12"
  done = subprocess.run(
    [
      python312,
      "-m",
      "pytest",
      "-q",
      "-m",
      "unit",
      "-n",
      "auto",
      "-p",
      "no:cacheprovider",
      "tests",
    ],
    cwd=ROOT,
    env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
