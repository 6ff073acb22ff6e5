"""The installed package, without the checkout: its version, extras, and a run in another folder."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib

import pytest

import srl_jax
from tests.tasks import own_task_test

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*command, cwd):
  env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_NUM_CPU_DEVICES": "1"}
  done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def test_extras_bring_a_jax_that_the_requirements_allow():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
  assert project["optional-dependencies"].keys() == {"cuda12", "cuda13", "tpu"}
  for extra, needs in project["optional-dependencies"].items():
    assert needs == [f"jax[{extra}]"]
  assert re.search(r"(?m)^jax>=", (ROOT / "requirements.txt").read_text("utf-8"))


@pytest.fixture
def python(tmp_path):
  """An environment with the package installed from a copy; it sees what is installed here."""
  pytest.importorskip("setuptools", minversion="70.1", reason="which builds the package offline")
  source = tmp_path / "source"
  shutil.copytree(ROOT / "srl_jax", source / "srl_jax", ignore=shutil.ignore_patterns("*.pyc"))
  for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
  python = tmp_path / "venv" / "bin" / "python"
  (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
  (packages / "outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
  install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
  run(python, *install, source, cwd=tmp_path)
  shutil.rmtree(source)
  return python


@pytest.mark.slow
def test_installed_package_trains_a_config_elsewhere(python, tmp_path):
  folder = tmp_path / "elsewhere"
  folder.mkdir()
  where = "import srl_jax; print(srl_jax.__file__, srl_jax.__version__)"
  file, version = run(python, "-c", where, cwd=folder).split()
  assert pathlib.Path(file).is_relative_to(tmp_path / "venv") and version == srl_jax.__version__
  own_task_test.write_task(folder)
  flags = own_task_test.small_flags()
  run(python, "-m", "srl_jax.train", "--config=translate.py", "--workdir=run", *flags, cwd=folder)
  assert json.loads((folder / "run" / "summary.json").read_text())["steps"] == 2
