"""Makes patches from the new contents of files, and tests properties that matter to a judge."""

import ast
import pathlib
import re
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence

from srl_jax.errors import UserError

# The reasons for an empty prediction, in the order of the stages at which they occur.
TOO_LONG, NO_FILE = "too_long", "no_file"  # there is no prompt
CUT_OFF, NO_EDIT, NOT_APPLIED = "cut_off", "no_edit", "not_applied"
SYNTAX, BLANK_LINES = "syntax", "blank_lines"
EMPTY_REASONS = (TOO_LONG, NO_FILE, CUT_OFF, NO_EDIT, NOT_APPLIED, SYNTAX, BLANK_LINES)

# git without the user's settings: autocrlf, noprefix and others would break a patch.
GIT_ENVIRONMENT = {
  "GIT_CONFIG_GLOBAL": "/dev/null",
  "GIT_CONFIG_NOSYSTEM": "1",
  "LC_ALL": "C.UTF-8",
  "PATH": "/usr/local/bin:/usr/bin:/bin",
}
# Files that can decide the result of a test run; see `touches`.
_CONFIGURATION = (".cfg", ".toml", ".ini", ".pth")
_BY_NAME = ("conftest.py", "sitecustomize.py", "usercustomize.py", "setup.py")
_HEADER = re.compile(rb'^(?:\+\+\+|---) "?[ab]/(.*?)"?\t?$', re.MULTILINE)


def git(*arguments: str, folder: pathlib.Path, stdin: bytes | None = None, codes=(0,)) -> bytes:
  """Returns git's standard output, run without the user's settings; UserError if git fails.

  Args:
    arguments: of git.
    folder: current directory.
    stdin: its input.
    codes: exit codes that are not failures.
  """
  try:
    done = subprocess.run(
      ["git", "-c", "core.quotepath=false", "-c", "safe.directory=*", *arguments],
      cwd=folder,
      input=stdin,
      capture_output=True,
      # git must not find a repository above the folder.
      env={**GIT_ENVIRONMENT, "GIT_CEILING_DIRECTORIES": str(folder.resolve().parent)},
    )
  except FileNotFoundError as error:
    raise UserError(f"git or {folder} is missing: install git (Debian: apt install git)") from error
  if done.returncode not in codes:
    said = " ".join(done.stderr.decode(errors="replace").split())[:300]
    raise UserError(f"{folder}: git {' '.join(arguments)[:200]} failed: {said}")
  return done.stdout


def diff(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> bytes:
  """Returns the patch in git's format between two sets of files, b"" if they are equal.

  `git diff` makes it from bytes: a file's last line may have no line end, and lines may contain
    form
  feeds or carriage returns; Python's difflib writes invalid patches for all of these.

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
    # Without prefixes, the folders' names make the paths a/PATH and b/PATH.
    options = ("--no-index", "--no-prefix", "--no-color", "--no-ext-diff", "--text")
    return git("diff", *options, "a", "b", folder=folder, codes=(0, 1))  # 1: there are differences


def paths_of(patch: str) -> list[str]:
  """Returns the paths in a patch's headers, old and new ones, unique and in order."""
  found = _HEADER.findall(patch.encode("utf-8", "surrogateescape"))
  return list(dict.fromkeys(path.decode("utf-8", "replace") for path in found))


# ---------------------------------------------------------------------------------- judgement


def refusal(path: str, old: str, new: str) -> str | None:
  """Returns why a changed file makes the whole prediction empty: SYNTAX, BLANK_LINES or None.

  A Python file must parse, unless it did not parse before (code of Python 2). As in Agentless Mini,
  a change of blank lines alone is not a patch.
  """
  if path.endswith(".py") and _tree(old) is not None and _tree(new) is None:
    return SYNTAX
  if _without_blank_lines(old) == _without_blank_lines(new):
    return BLANK_LINES
  return None


def _without_blank_lines(text: str) -> list[str]:
  """Returns the lines that are not blank."""
  return [line for line in text.split("\n") if line.strip()]


def _tree(text: str) -> ast.Module | None:
  """Returns the syntax tree, None for a text that this Python does not parse."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of invalid escape sequences in old code
      return ast.parse(text.removeprefix("\ufeff"))
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None


def normal_form(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
  """Returns a form that is equal for patches with the same effect; votes are counted by it.

  As in Agentless: the new code as written by `ast.unparse`, without comments and docstrings. Files
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
  """Returns a file's code without comments and docstrings; any other text unchanged."""
  tree = _tree(text) if path.endswith(".py") else None
  if tree is None:
    return text
  for node in ast.walk(tree):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
      node.body = node.body[1:] or [ast.Pass()]  # a body must not be empty
  try:
    return ast.unparse(tree)
  except RecursionError:
    return text


def vote(forms: Sequence[tuple | None]) -> int | None:
  """Returns the index of the first patch with the most frequent normal form, None if all are empty.

  Args:
    forms: normal form of each sample's patch; None for an empty patch, which does not vote. Of
      forms with equally many votes the first one wins.
  """
  counts: dict[tuple, int] = {}
  for form in forms:
    if form is not None:
      counts[form] = counts.get(form, 0) + 1
  if not counts:
    return None
  return list(forms).index(max(counts, key=counts.get))  # max returns the first of equals


def touches(patch: str) -> list[str]:
  """Returns the patch's paths that could change the result of a test run, for the table's flag.

  The official harness resolves an instance if a conftest.py sets every report to "passed", so
  tests, conftest.py, configuration files and modules that Python imports at start-up are flagged.
  """
  flagged = []
  for path in paths_of(patch):
    name = path.rpartition("/")[2]
    if name in _BY_NAME or name.endswith(_CONFIGURATION) or is_test(path):
      flagged.append(path)
  return flagged


def is_test(path: str) -> bool:
  """Returns whether a file is a test, by its name or by a folder in its path."""
  *folders, name = path.split("/")
  if name.startswith("test_") or name.endswith("_test.py") or name in ("tests.py", "test.py"):
    return True
  return any(folder in ("tests", "test", "testing") for folder in folders)
