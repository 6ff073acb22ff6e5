"""Reads files of a repository at a commit from a bare clone, without a checkout.

launch/swe_repositories.sh makes the clones: DIR/owner__name.git.
"""

import dataclasses
import functools
import pathlib
import tokenize

from srl_jax.errors import UserError
from srl_jax.evals.swe.patches import git, is_test

REMEDY = "make the clones with launch/swe_repositories.sh DIR and give --repositories=DIR"


@dataclasses.dataclass(frozen=True)
class Repository:
  """A commit of a repository.

  Attributes:
    folder: the bare clone.
    commit: its hash, or any other name of a tree.
  """

  folder: pathlib.Path
  commit: str

  @functools.cached_property
  def _blobs(self) -> dict[str, str]:
    """{path: object id} of the regular files."""
    listing = git("ls-tree", "-r", "-z", "--full-tree", self.commit, folder=self.folder)
    found = {}
    for entry in listing.split(b"\0")[:-1]:
      # An entry is "MODE TYPE HASH\tPATH".
      about, _, path = entry.partition(b"\t")
      mode, _, blob = about.decode().split()
      if mode in ("100644", "100755"):  # neither symbolic links nor submodules
        found[path.decode("utf-8", "surrogateescape")] = blob
    return found

  def names(self) -> list[str]:
    """Returns the paths of all regular files, sorted."""
    return sorted(self._blobs)

  def read(self, path: str) -> bytes | None:
    """Returns a file's content, None if there is no such file."""
    blob = self._blobs.get(path)
    return None if blob is None else git("cat-file", "blob", blob, folder=self.folder)


def open_repository(root: pathlib.Path, repo: str, commit: str) -> Repository:
  """Returns a commit of the clone of `repo` ("owner/name") in `root`.

  Raises:
    UserError: there is no clone, or it does not have the commit.
  """
  folder = root / f"{repo.replace('/', '__')}.git"
  if not folder.is_dir():
    raise UserError(f"{folder}: no clone of {repo}; {REMEDY}")
  try:
    git("cat-file", "-e", f"{commit}^{{commit}}", folder=folder)
  except UserError as error:
    raise UserError(f"{folder} has no commit {commit}; {REMEDY}, which fetches") from error
  return Repository(folder, commit)


# ---------------------------------------------------------------------------------- text


def decode(content: bytes) -> tuple[str, str] | None:
  """Returns a source file's (text, encoding), with text.encode(encoding) equal to the content.

  The encoding is UTF-8 or the one that the file declares (PEP 263). None for anything else.
  """
  try:
    return content.decode("utf-8"), "utf-8"
  except UnicodeDecodeError:
    pass
  try:
    lines = iter(content.splitlines(keepends=True)[:2])
    encoding = tokenize.detect_encoding(lambda: next(lines, b""))[0]
    text = content.decode(encoding)
  except (SyntaxError, UnicodeDecodeError, LookupError):
    return None
  # Some codecs decode several byte sequences to one character; such a file cannot be written back.
  return (text, encoding) if text.encode(encoding) == content else None


# ---------------------------------------------------------------------------------- tree


def source_names(names: list[str], repo: str) -> list[str]:
  """Returns the Python files that the localisation prompt lists.

  Tests are excluded, as in Agentless Mini, except for pytest's own repository, in which the package
  itself has such names. conftest.py is excluded too, because it can decide the result of a test
  run.
  """
  pytest_itself = repo == "pytest-dev/pytest"
  found = []
  for path in names:
    if not path.endswith(".py") or path.rpartition("/")[2] == "conftest.py":
      continue
    looks_like_test = _named_test(path) or is_test(path)
    if not looks_like_test or (pytest_itself and path.startswith("src/")):
      found.append(path)
  return found


def _named_test(path: str) -> bool:
  """Returns whether any part of a path begins with "test"."""
  return any(part.startswith("test") for part in path.split("/"))


def tree(names: list[str], indent: int = 2) -> str:
  """Returns paths as a tree: one name per line, folders with a slash, children indented."""
  lines, open_folders = [], []
  for path in sorted(names):
    *folders, name = path.split("/")
    shared = 0  # number of leading folders in common with the previous path
    while shared < min(len(folders), len(open_folders)):
      if folders[shared] != open_folders[shared]:
        break
      shared += 1
    for depth in range(shared, len(folders)):
      lines.append(" " * indent * depth + folders[depth] + "/")
    open_folders = folders
    lines.append(" " * indent * len(folders) + name)
  return "\n".join(lines)
