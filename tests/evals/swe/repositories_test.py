"""Files at a commit, read from bare clones."""

import pathlib
import subprocess

import pytest

from srl_jax.errors import UserError
from srl_jax.evals.swe import instances, repositories
from tests.evals.swe.conftest import CODE, FILES

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_open_repository_reads_a_commit(toy):
  file, clones = toy
  (row,) = instances.load(str(file))
  repository = repositories.open_repository(clones, row.repo, row.base_commit)
  assert repository.names() == sorted(FILES)
  assert repository.read("calc.py") == CODE.encode()
  assert repository.read("../calc.py") is repository.read("helpers") is None
  assert repositories.source_names(repository.names(), row.repo) == [
    "calc.py",
    "helpers/__init__.py",
    "helpers/text.py",
  ]


def test_open_repository_refuses_a_missing_clone_or_commit(toy):
  _, clones = toy
  with pytest.raises(UserError, match="no clone of toy/other"):
    repositories.open_repository(clones, "toy/other", "a" * 40)
  with pytest.raises(UserError, match="no commit aaaa"):
    repositories.open_repository(clones, "toy/calc", "a" * 40)


def test_swe_repositories_script_makes_clones(toy, tmp_path):
  """The first call clones, the second fetches what is new."""
  _, clones = toy
  work = clones.parent / "work"
  source = tmp_path / "host" / "toy" / "calc"
  source.parent.mkdir(parents=True)
  subprocess.run(["git", "clone", "-q", work, source], check=True)
  script = [ROOT / "launch" / "swe_repositories.sh", tmp_path / "clones", "toy/calc"]
  environment = {"PATH": "/usr/bin:/bin", "SWE_GIT_HOST": str(tmp_path / "host")}
  subprocess.run(script, check=True, env=environment, capture_output=True)
  identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
  commit = ["git", *identity, "commit", "-q", "--allow-empty", "-m", "two"]
  subprocess.run(commit, cwd=source, check=True)
  new = subprocess.run(["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True)
  subprocess.run(script, check=True, env=environment, capture_output=True)
  repositories.open_repository(tmp_path / "clones", "toy/calc", new.stdout.strip())


def test_tree_lists_the_files():
  names = ["b.py", "a/x.py", "a/c/y.py", "a/c/z.py", "ab/x.py"]
  lines = ["a/", "  c/", "    y.py", "    z.py", "  x.py", "ab/", "  x.py", "b.py"]
  assert repositories.tree(names) == "\n".join(lines)


@pytest.mark.parametrize(
  "path, repo, shown",
  [
    ("src/_pytest/pytester.py", "pytest-dev/pytest", True),
    ("testing/test_mark.py", "pytest-dev/pytest", False),
    ("sklearn/tests/helper.py", "scikit-learn/scikit-learn", False),
    ("sympy/testing/runtests.py", "sympy/sympy", False),
    ("lib/matplotlib/test_x.py", "matplotlib/matplotlib", False),
    ("conftest.py", "sympy/sympy", False),
    ("django/contrib/latest.py", "django/django", True),
    ("setup.cfg", "django/django", False),
  ],
)
def test_tree_for_localisation_leaves_out_tests(path, repo, shown):
  assert (path in repositories.source_names([path], repo)) == shown


def test_read_decodes_other_encodings():
  latin = b"# -*- coding: latin-1 -*-\nx = '\xe9'\n"
  for content in (b"a\r\n\x0c", "é".encode(), b"\xef\xbb\xbfx = 1\n", latin):
    text, encoding = repositories.decode(content)
    assert text.encode(encoding) == content
  assert repositories.decode(b"x = '\xe9'\n") is None  # Python refuses it, too
  assert repositories.decode(b"# coding: nonsense\n\xe9") is None
