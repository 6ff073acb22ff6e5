"""Recipes for running a repository's tests without its docker image: Python, packages, command.

A recipe applies to the versions with which its interpreter and pins were tried. The interpreter
matters: the benchmark lists the test names that Python 3.6 prints, and unittest prints others from
Python 3.8 on.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Sequence

from srl_jax.errors import UserError
from srl_jax.evals.swe.patches import is_test, paths_of

Version = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to run the tests of some versions of a repository.

  Attributes:
    name: of its environment.
    first, last: versions (major, minor), both included.
    project: the name of its source releases on the package index.
    pythons: versions of Python that can run it, the best first.
    packages: requirements, installed from wheels only, so that no code of a package runs outside
      the sandbox. The repository itself is found by PYTHONPATH.
    command: maps the paths that a test patch changes to the command, run in the repository's
      folder.
    log_parser: swebench's name for the parser of its output.
  """

  name: str
  first: Version
  last: Version
  project: str
  pythons: tuple[str, ...]
  packages: tuple[str, ...]
  command: Callable[[Sequence[str]], str]
  log_parser: str


def _pytest(paths: Sequence[str]) -> str:
  """Returns the command that runs pytest on the test files."""
  # A test patch may change data files too, which pytest cannot run.
  files = [path for path in paths if path.rpartition("/")[2].startswith("test_")]
  return f"python -m pytest -rA -p no:cacheprovider --tb=short {' '.join(files)}"


def _django(paths: Sequence[str]) -> str:
  """Returns the command of Django's own runner; its labels are modules below tests/."""
  labels = []
  for path in paths:
    if path.endswith(".py"):
      labels.append(path.removeprefix("tests/").removesuffix(".py").replace("/", "."))
  # Verbosity 2 prints a line per test, which the log parser needs.
  options = "--verbosity 2 --settings=test_sqlite --parallel 1"
  return f"python tests/runtests.py {options} {' '.join(labels)}"


# Upper bounds: newer releases of these packages removed names that Sphinx 3 to 5 imports.
_SPHINX_PACKAGES = (
  *("Jinja2<3.0", "markupsafe<=2.0.1", "alabaster<0.7.12", "Pygments<2.14", "snowballstemmer<2.3"),
  *(
    "sphinxcontrib-applehelp<=1.0.7",
    "sphinxcontrib-devhelp<=1.0.5",
    "sphinxcontrib-qthelp<=1.0.6",
  ),
  *("sphinxcontrib-htmlhelp<=2.0.4", "sphinxcontrib-serializinghtml<=1.1.9"),
  *("sphinxcontrib-jsmath", "babel<2.13", "imagesize", "requests", "packaging", "setuptools<66"),
  *("importlib-metadata<5; python_version < '3.10'", "pytest<7.2", "html5lib", "cython<3"),
)


def _sphinx(name: str, first: Version, last: Version, pythons, docutils: str) -> Recipe:
  """Returns a recipe for some versions of Sphinx, which differ in Python and docutils."""
  packages = (docutils, *_SPHINX_PACKAGES)
  return Recipe(name, first, last, "Sphinx", pythons, packages, _pytest, "parse_log_sphinx")


RECIPES: dict[str, tuple[Recipe, ...]] = {
  "sphinx-doc/sphinx": (
    _sphinx("sphinx-3", (3, 0), (3, 5), ("3.9",), "docutils<0.17"),
    _sphinx("sphinx-4", (4, 0), (4, 4), ("3.9",), "docutils<0.18"),
    _sphinx("sphinx-5", (4, 5), (5, 3), ("3.9", "3.10", "3.11"), "docutils<0.18"),
  ),
  "django/django": (
    Recipe(
      "django-3",
      (3, 0),
      (3, 2),
      "Django",
      ("3.6",),
      # Exact versions: Python 3.6's pip may select newer ones that do not run on it.
      ("asgiref==3.4.1", "typing_extensions==4.1.1", "pytz==2023.3", "sqlparse==0.4.4"),
      _django,
      "parse_log_django",
    ),
  ),
}


def recipe_of(repo: str, version: Version) -> Recipe | None:
  """Returns the recipe for a version of a repository, None if there is none."""
  for recipe in RECIPES.get(repo, ()):
    if recipe.first <= version <= recipe.last:
      return recipe
  return None


def known() -> str:
  """Returns the repositories and versions with recipes, as a text for messages."""
  found = []
  for repo, recipes in RECIPES.items():
    first, last = recipes[0].first, recipes[-1].last
    found.append(f"{repo} {first[0]}.{first[1]} to {last[0]}.{last[1]}")
  return ", ".join(found)


def test_files(test_patch: str) -> list[str]:
  """Returns the test files that a test patch changes; they are restored before the tests run."""
  return [path for path in paths_of(test_patch) if is_test(path) or path.endswith(".py")]


# ---------------------------------------------------------------------------------- interpreters


@dataclasses.dataclass(frozen=True)
class Interpreter:
  """A Python interpreter.

  Attributes:
    executable: its path.
    prefix: the folder that contains its standard library.
    version: such as "3.9.18".
  """

  executable: pathlib.Path
  prefix: pathlib.Path
  version: str


def find_python(versions: Sequence[str]) -> Interpreter | None:
  """Returns the first interpreter of the given versions ("3.9") on PATH or in pyenv, or None."""
  for version in versions:
    for path in _candidates(version):
      found = _look_at(path)
      # With a dot at the end, "3.1" does not match "3.11.7".
      if found and f"{found.version}.".startswith(f"{version}."):
        return found
  return None


def _candidates(version: str) -> list[pathlib.Path]:
  """Returns the executables to try for a version: on PATH, then pyenv's, newest first."""
  on_path = shutil.which(f"python{version}")
  pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
  found = sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)
  return [pathlib.Path(on_path), *found] if on_path else found


def _look_at(executable: pathlib.Path) -> Interpreter | None:
  """Returns the interpreter of an executable; None if it does not run (pyenv's shims may fail)."""
  code = "import sys; print(sys.executable, sys.base_prefix, '%d.%d.%d' % sys.version_info[:3])"
  done = subprocess.run([executable, "-c", code], capture_output=True, text=True)
  parts = done.stdout.split()
  if done.returncode or len(parts) != 3:
    return None
  return Interpreter(pathlib.Path(parts[0]), pathlib.Path(parts[1]).resolve(), parts[2])


def environment_of(recipe: Recipe, cache: pathlib.Path) -> tuple[pathlib.Path, Interpreter]:
  """Returns the virtual environment of a recipe, made on first use, and its interpreter.

  Args:
    recipe: defines interpreter and packages.
    cache: folder that contains environments/.

  Raises:
    UserError: no interpreter is found, or a package cannot be installed.
  """
  python = find_python(recipe.pythons)
  if python is None:
    names = " or ".join(recipe.pythons)
    raise UserError(f"needs Python {names}, which is neither on PATH nor among pyenv's versions")
  folder = cache.resolve() / "environments" / f"{recipe.name}-python{python.version}"
  done = folder / ".done"
  # `.done` has the packages that were installed: after a change of the recipe it is made again.
  wanted = "\n".join(recipe.packages)
  if not done.exists() or done.read_text(encoding="utf-8") != wanted:
    shutil.rmtree(folder, ignore_errors=True)
    _run([str(python.executable), "-m", "venv", str(folder)])
    if recipe.packages:
      # Only wheels: building a source package would run its code outside the sandbox.
      pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--only-binary=:all:"]
      _run([*pip, *recipe.packages])
    done.write_text(wanted, encoding="utf-8")
  return folder, python


def _run(command: list[str]) -> None:
  """Runs a command; UserError with the last line of its errors if it fails."""
  done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
  if done.returncode:
    said = done.stderr.strip().split("\n")[-1][:300]
    raise UserError(f"{' '.join(command)[:200]} failed: {said}")
