"""Patches: from new contents of files to the text that a judge applies, and its properties."""

import ast
import pathlib
import re
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence

from srl_jax.errors import UserError

# Why a prediction is empty, in the order in which the reasons are looked for.
TOO_LONG, NO_FILE = "too_long", "no_file"  # no prompt could be made
CUT_OFF, NO_EDIT, NOT_APPLIED = "cut_off", "no_edit", "not_applied"
SYNTAX, BLANK_LINES = "syntax", "blank_lines"
EMPTY_REASONS = (TOO_LONG, NO_FILE, CUT_OFF, NO_EDIT, NOT_APPLIED, SYNTAX, BLANK_LINES)

# A git without the settings of its user: autocrlf, noprefix and others would break a patch.
GIT_ENVIRONMENT = {
  "GIT_CONFIG_GLOBAL": "/dev/null",
  "GIT_CONFIG_NOSYSTEM": "1",
  "LC_ALL": "C.UTF-8",
  "PATH": "/usr/local/bin:/usr/bin:/bin",
}
# Files that can decide what a test run reports; see `touches`.
_CONFIGURATION = (".cfg", ".toml", ".ini", ".pth")
_BY_NAME = ("conftest.py", "sitecustomize.py", "usercustomize.py", "setup.py")
_HEADER = re.compile(rb'^(?:\+\+\+|---) "?[ab]/(.*?)"?\t?$', re.MULTILINE)


def git(*arguments: str, folder: pathlib.Path, stdin: bytes | None = None, codes=(0,)) -> bytes:
  """Returns what git prints, run without any settings of a user; UserError if git fails.

  Args:
    folder: current directory.
    stdin: its input.
    codes: exit codes that are no failure.
  """
  try:
    done = subprocess.run(
      ["git", "-c", "core.quotepath=false", "-c", "safe.directory=*", *arguments],
      cwd=folder,
      input=stdin,
      capture_output=True,
      # The folder may be inside a repository that has nothing to do with it.
      env={**GIT_ENVIRONMENT, "GIT_CEILING_DIRECTORIES": str(folder.resolve().parent)},
    )
  except FileNotFoundError as error:
    raise UserError(f"git or {folder} is missing: install git (Debian: apt install git)") from error
  if done.returncode not in codes:
    said = " ".join(done.stderr.decode(errors="replace").split())[:300]
    raise UserError(f"{folder}: git {' '.join(arguments)[:200]} failed: {said}")
  return done.stdout


def diff(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> bytes:
  """Returns the patch in git's format between two sets of files, b"" if nothing differs.

  It is made by `git diff` on bytes: a file's last line may have no line end, and lines may hold
  form feeds or carriage returns, all of which Python's difflib gets wrong in patches.

  Args:
    old, new: {path: content}, with the same paths.
  """
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for side, files in (("a", old), ("b", new)):
      for path, content in files.items():
        target = folder / side / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    # With the folders' own names as prefixes the paths are a/PATH and b/PATH.
    options = ("--no-index", "--no-prefix", "--no-color", "--no-ext-diff", "--text")
    return git("diff", *options, "a", "b", folder=folder, codes=(0, 1))


def paths_of(patch: str) -> list[str]:
  """Returns the paths in a patch's headers, old and new ones, each once, in their order."""
  found = _HEADER.findall(patch.encode("utf-8", "surrogateescape"))
  return list(dict.fromkeys(path.decode("utf-8", "replace") for path in found))


# ---------------------------------------------------------------------------------- judgement


def refusal(path: str, old: str, new: str) -> str | None:
  """Returns why a changed file makes the whole prediction empty: SYNTAX, BLANK_LINES or None.

  A Python file must parse, unless it did not before either: code of Python 2 is not our fault. As
  in Agentless Mini, a change of blank lines alone is no patch.
  """
  if path.endswith(".py") and _tree(old) is not None and _tree(new) is None:
    return SYNTAX
  if _without_blank_lines(old) == _without_blank_lines(new):
    return BLANK_LINES
  return None


def _without_blank_lines(text: str) -> list[str]:
  return [line for line in text.split("\n") if line.strip()]


def _tree(text: str) -> ast.Module | None:
  """The syntax tree, None for a text that this Python does not parse."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # invalid escapes of old code
      return ast.parse(text.removeprefix("\ufeff"))
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None


def normal_form(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
  """Returns what two patches of the same files share if they do the same; votes count by it.

  As in Agentless: the new code as `ast.unparse` writes it, without comments and docstrings; files
  in which nothing else changes are left out.

  Args:
    old, new: {path: text} of the files that change.
  """
  changed = []
  for path in sorted(new):
    before, after = _normal_text(path, old[path]), _normal_text(path, new[path])
    if before != after:
      changed.append((path, after))
  return tuple(changed)


def _normal_text(path: str, text: str) -> str:
  tree = _tree(text) if path.endswith(".py") else None
  if tree is None:
    return text
  for node in ast.walk(tree):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
      node.body = node.body[1:] or [ast.Pass()]
  try:
    return ast.unparse(tree)
  except RecursionError:
    return text


def vote(forms: Sequence[tuple | None]) -> int | None:
  """Returns the index of the first patch of the most frequent normal form, None if there is none.

  Args:
    forms: normal form of each sample's patch, None for an empty one, which has no vote. Of forms
      with equally many votes the first one wins.
  """
  counts: dict[tuple, int] = {}
  for form in forms:
    if form is not None:
      counts[form] = counts.get(form, 0) + 1
  if not counts:
    return None
  return list(forms).index(max(counts, key=counts.get))  # max returns the first of equals


def touches(patch: str) -> list[str]:
  """Returns the patch's paths that could change what a test run reports, for the table's flag.

  A conftest.py that sets every report to "passed" is graded as resolved by the official harness, so
  tests, conftest.py, configuration files and modules that Python loads by itself are flagged.
  """
  flagged = []
  for path in paths_of(patch):
    name = path.rpartition("/")[2]
    if name in _BY_NAME or name.endswith(_CONFIGURATION) or is_test(path):
      flagged.append(path)
  return flagged


def is_test(path: str) -> bool:
  """Whether a file is a test: by its name, or by a folder of its path."""
  *folders, name = path.split("/")
  if name.startswith("test_") or name.endswith("_test.py") or name in ("tests.py", "test.py"):
    return True
  return any(folder in ("tests", "test", "testing") for folder in folders)
