"""A toy repository with a bug, an issue and a test."""

import json
import pathlib
import subprocess

import pytest

from srl_jax.evals.swe import patches

CODE = "def add(a, b):\n  return a - b\n\n\ndef twice(x):\n  return 2 * x\n"
FIXED = CODE.replace("a - b", "a + b")
TEST = "import calc\n\n\ndef test_twice():\n  assert calc.twice(2) == 4\n"
MORE_TEST = TEST + "\n\ndef test_add():\n  assert calc.add(2, 3) == 5\n"
FILES = {
  "calc.py": CODE,
  "helpers/text.py": "NAME = 'calc'\n",
  "helpers/__init__.py": "",
  "tests/test_calc.py": TEST,
  "conftest.py": "",
  "README.md": "A calculator.\n",
}


def commit(folder, files):
  """Makes a repository with one commit; returns its name."""
  for path, text in files.items():
    target = pathlib.Path(folder) / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
  run = lambda *words: subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
  run("init", "-q")
  run("add", "-A")
  run("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
  return run("rev-parse", "HEAD").stdout.decode().strip()


def change(path, old, new):
  return patches.diff({path: old.encode()}, {path: new.encode()}).decode()


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
  """(file with one row, folder of clones) of the toy repository."""
  root = tmp_path_factory.mktemp("toy")
  work = root / "work"
  work.mkdir()
  name = commit(work, FILES)
  clones = root / "clones"
  clones.mkdir()
  subprocess.run(
    ["git", "clone", "-q", "--bare", work, clones / "toy__calc.git"],
    check=True,
    capture_output=True,
  )
  row = {
    "instance_id": "toy__calc-1",
    "repo": "toy/calc",
    "base_commit": name,
    "problem_statement": "add(2, 3) is -1, it should be 5.",
    "patch": change("calc.py", CODE, FIXED),
    "test_patch": change("tests/test_calc.py", TEST, MORE_TEST),
    "FAIL_TO_PASS": ["tests/test_calc.py::test_add"],
    "PASS_TO_PASS": ["tests/test_calc.py::test_twice"],
    "version": "1.0",
  }
  file = root / "rows.jsonl"
  file.write_text(json.dumps(row) + "\n")
  return file, clones
