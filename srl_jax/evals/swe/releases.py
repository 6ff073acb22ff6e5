"""Source releases in the place of commits: what an offline judge runs tests on."""

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
  """A source release. Fields: project; version; minor, (major, minor); uploaded."""

  project: str
  version: str
  minor: tuple[int, int]
  uploaded: datetime.datetime


def listed(call: Call, project: str) -> list[Release]:
  """All source releases of a project whose date is known.

  Args:
    call: see official.harness.
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
  """Returns the n releases next to a time, the nearest first, before and after it.

  A commit on the way to version 3.1 is between the releases of 3.0 and of 3.1, so only these two
  are looked at.

  Args:
    version: that the commit belongs to.
    created_at: ISO 8601, the time of the fix; the base commit is older, as a rule by days.
  """
  minors = sorted({release.minor for release in releases})
  before = [minor for minor in minors if minor < version]
  series = (*before[-1:], version)
  time = _time(created_at)
  near = [release for release in releases if release.minor in series]
  return sorted(near, key=lambda release: abs(release.uploaded - time))[:n]


def _time(text: str) -> datetime.datetime:
  time = datetime.datetime.fromisoformat(text)
  return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def unpacked(call: Call, release: Release, cache: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a release's files, downloaded on first use.

  Args:
    call: see official.harness.
    cache: folder that has releases/.
  """
  folder = cache.resolve() / "releases" / f"{release.project}-{release.version}"
  if folder.is_dir():
    return folder
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder.parent) as name:
    file = call("download", project=release.project, version=release.version, folder=name)
    files = pathlib.Path(name) / "files"
    files.mkdir()
    _unpack(pathlib.Path(file), files)
    (top,) = files.iterdir()  # a source release has one folder with its name
    shutil.move(top, folder)
  return folder


def _unpack(file: pathlib.Path, folder: pathlib.Path) -> None:
  if file.suffix == ".zip":
    with zipfile.ZipFile(file) as archive:
      archive.extractall(folder)
    return
  if not hasattr(tarfile, "data_filter"):
    raise UserError("unpacking a release safely needs Python 3.11.4 or newer: update Python")
  with tarfile.open(file) as archive:
    archive.extractall(folder, filter="data")  # nothing outside the folder, no devices
