"""Which recipe, interpreter and release an instance gets."""

import datetime
import os
import sys

import pytest

from srl_jax.errors import UserError
from srl_jax.evals.swe import recipes, releases


def release(version, uploaded):
  major, minor = version.split(".")[:2]
  minor = int("".join(c for c in minor if c.isdigit())[:1])
  time = datetime.datetime.fromisoformat(f"{uploaded}T12:00:00+00:00")
  return releases.Release("P", version, (int(major), minor), time)


# Django's, around the start of its 3.1.
LISTED = [
  release("2.2.7", "2019-11-04"),
  release("3.0a1", "2019-09-10"),
  release("3.0b1", "2019-10-14"),
  release("3.0rc1", "2019-11-18"),
  release("3.0", "2019-12-02"),
  release("3.1a1", "2020-05-14"),
  release("3.2a1", "2021-01-19"),
]


def test_nearest_release_by_hand():
  """Of the version and of the one before, by their distance in time, before and after."""
  found = releases.nearest(LISTED, (3, 1), "2019-11-06T21:14:34Z", 4)
  assert [release.version for release in found] == ["3.0rc1", "3.0b1", "3.0", "3.0a1"]
  late = releases.nearest(LISTED, (3, 1), "2020-05-01", 1)
  assert [release.version for release in late] == ["3.1a1"]
  first = releases.nearest(LISTED, (2, 2), "2019-11-06", 9)
  assert [release.version for release in first] == ["2.2.7"]


@pytest.mark.parametrize(
  "repo, version, python",
  [
    ("sphinx-doc/sphinx", (3, 5), "3.9"),
    ("sphinx-doc/sphinx", (4, 4), "3.9"),
    ("sphinx-doc/sphinx", (5, 3), "3.9"),
    ("django/django", (3, 0), "3.6"),
    ("django/django", (3, 2), "3.6"),
  ],
)
def test_recipe_of_known_rows(repo, version, python):
  assert recipes.recipe_of(repo, version).pythons[0] == python


def test_recipe_refuses_unknown_rows():
  for repo, version in (("sphinx-doc/sphinx", (7, 2)), ("django/django", (4, 0)), ("a/b", (1, 0))):
    assert recipes.recipe_of(repo, version) is None


def test_test_command_by_hand():
  django = recipes.recipe_of("django/django", (3, 1)).command
  paths = ["tests/indexes/tests.py", "tests/migrations/test_base.py"]
  assert django(paths).endswith(" indexes.tests migrations.test_base")
  sphinx = recipes.recipe_of("sphinx-doc/sphinx", (4, 5)).command
  roots = ["tests/roots/test-a/conf.py", "tests/roots/test-a/index.rst"]
  assert sphinx(["tests/test_a.py", *roots]).endswith("--tb=short tests/test_a.py")


def test_interpreter_is_found(tmp_path, monkeypatch):
  """On PATH first, then pyenv's; an executable that does not run or is another version is none."""
  version = f"{sys.version_info.major}.{sys.version_info.minor}"
  monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
  monkeypatch.setenv("PATH", str(tmp_path))
  assert recipes.find_python([version]) is None
  broken = tmp_path / f"python{version}"
  broken.write_text("#!/bin/sh\nexit 127\n")
  broken.chmod(0o755)
  assert recipes.find_python([version]) is None
  ours = tmp_path / "pyenv" / "versions" / f"{version}.1" / "bin" / "python"
  ours.parent.mkdir(parents=True)
  os.symlink(sys.executable, ours)
  found = recipes.find_python(["2.5", version])
  assert found.version.startswith(f"{version}.") and found.prefix.is_dir()
  other = tmp_path / "pyenv" / "versions" / "2.5.1" / "bin" / "python"
  other.parent.mkdir(parents=True)
  os.symlink(sys.executable, other)
  assert recipes.find_python(["2.5"]) is None


def test_interpreter_that_is_missing_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
  monkeypatch.setenv("PATH", str(tmp_path))
  recipe = recipes.recipe_of("django/django", (3, 1))
  with pytest.raises(UserError, match="Python 3.6"):
    recipes.environment_of(recipe, tmp_path)
