"""SHA-256 of the files of model folders: an export's own, and those of frozen weights."""

import concurrent.futures
import hashlib
import pathlib

from srl_jax.errors import UserError
from srl_jax.policy.hf_files import short, weight_files

CHECKSUMS = "SHA256SUMS"  # of an export's files, as the program sha256sum writes and reads it
_REMEDY_OF_SUMS = f"copy the folder again, or remove {CHECKSUMS} if the change is on purpose"


def write_checksums(folder: pathlib.Path) -> None:
  """Writes SHA256SUMS of all files of a folder; `sha256sum -c SHA256SUMS` checks it too."""
  paths = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
  with concurrent.futures.ThreadPoolExecutor() as threads:
    sums = threads.map(_sha256, paths)
    lines = [f"{found}  {path.name}\n" for path, found in zip(paths, sums)]
  (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def check_checksums(folder, settings: str = "config.json") -> None:
  """Raises UserError if a file of an export is not the one that SHA256SUMS has the sum of.

  A folder without that file, as of the hub, is not checked. Its file of settings and its weights
  must have a sum.
  """
  sums_file = pathlib.Path(folder) / CHECKSUMS
  if not sums_file.exists():
    return
  lines = sums_file.read_text(encoding="utf-8", errors="replace").splitlines()
  expected = {name: wanted for wanted, _, name in (line.partition("  ") for line in lines)}
  weights = {path.name for path in sums_file.parent.glob("*.safetensors")}
  for name in sorted({settings, *weights, *expected}):
    if not name or "/" in name or "\0" in name or name not in expected:
      raise UserError(
        f"{sums_file}: damaged, no checksum of a file of this folder: {short(name)};"
        f" {_REMEDY_OF_SUMS}"
      )
  with concurrent.futures.ThreadPoolExecutor() as threads:
    found = list(threads.map(_sha256, [sums_file.parent / name for name in expected]))
  for (name, wanted), now in zip(expected.items(), found):
    if now != wanted:
      what = "missing" if now is None else "damaged, or changed since the export"
      raise UserError(
        f"{sums_file.parent / name}: {what} ({CHECKSUMS} has its checksum); {_REMEDY_OF_SUMS}"
      )


def _sha256(path: pathlib.Path) -> str | None:
  """The SHA-256 of a file in hexadecimal digits; None if there is none."""
  if not path.is_file():
    return None
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def weight_hashes(folder) -> dict[str, str]:
  """{name: SHA-256} of the safetensors files of a model folder; about 1 s for 2 GB and thread."""
  paths = weight_files(pathlib.Path(folder))
  with concurrent.futures.ThreadPoolExecutor() as threads:
    return dict(zip([path.name for path in paths], threads.map(_sha256, paths)))
