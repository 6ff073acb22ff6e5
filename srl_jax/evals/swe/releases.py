"""Source releases as substitutes for commits, for judging offline."""

import dataclasses
import datetime
import pathlib
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence

from srl_jax.errors import UserError
from srl_jax.evals.swe.official import Call


@dataclasses.dataclass(frozen=True)
class Release:
  """A source release.

  Attributes:
    project: its name on the package index.
    version: such as "3.4.3".
    minor: (major, minor).
    uploaded: time of the upload.
  """

  project: str
  version: str
  minor: tuple[int, int]
  uploaded: datetime.datetime


def listed(call: Call, project: str) -> list[Release]:
  """Returns all source releases of a project with a known time of upload.

  Args:
    call: see official.harness.
    project: name on the package index.
  """
  found = []
  for row in call("releases", project=project):
    if row["uploaded"]:
      uploaded = _time(row["uploaded"])
      found.append(Release(project, row["version"], tuple(row["minor"]), uploaded))
  return found


def nearest(
  releases: Sequence[Release], version: tuple[int, int], created_at: str, n: int
) -> list[Release]:
  """Returns the n releases closest to a time, before or after it, the closest first.

  A commit on the way to version 3.1 is between the releases of 3.0 and 3.1, so only these two
  series are considered.

  Args:
    releases: of the project.
    version: of the commit.
    created_at: time of the fix, ISO 8601; the base commit is usually some days older.
    n: how many.
  """
  minors = sorted({release.minor for release in releases})
  before = [minor for minor in minors if minor < version]
  # The last series before the version, if there is one, and the version's own.
  series = (*before[-1:], version)
  time = _time(created_at)
  near = [release for release in releases if release.minor in series]
  return sorted(near, key=lambda release: abs(release.uploaded - time))[:n]


def _time(text: str) -> datetime.datetime:
  """Returns an ISO 8601 time; UTC if it has no zone."""
  time = datetime.datetime.fromisoformat(text)
  return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def unpacked(call: Call, release: Release, cache: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a release's files, downloaded on first use.

  Args:
    call: see official.harness.
    release: which one.
    cache: folder that contains releases/.
  """
  folder = cache.resolve() / "releases" / f"{release.project}-{release.version}"
  if folder.is_dir():
    return folder
  folder.parent.mkdir(parents=True, exist_ok=True)
  # Unpacked beside its final place and moved at the end, so that `folder` is always complete.
  with tempfile.TemporaryDirectory(dir=folder.parent) as name:
    file = call("download", project=release.project, version=release.version, folder=name)
    files = pathlib.Path(name) / "files"
    files.mkdir()
    _unpack(pathlib.Path(file), files)
    (top,) = files.iterdir()  # a source release has one folder with its name
    shutil.move(top, folder)
  return folder


def _unpack(file: pathlib.Path, folder: pathlib.Path) -> None:
  """Unpacks an archive into a folder; UserError if this Python cannot do so safely."""
  if file.suffix == ".zip":
    with zipfile.ZipFile(file) as archive:
      archive.extractall(folder)
    return
  if not hasattr(tarfile, "data_filter"):
    raise UserError("unpacking a release safely needs Python 3.11.4 or newer: update Python")
  with tarfile.open(file) as archive:
    # The filter rejects members outside the folder, and devices.
    archive.extractall(folder, filter="data")
