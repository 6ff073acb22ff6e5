"""Reads rows of data sets from files, folders or the hub, each with its place for messages."""

import csv
import gzip
import itertools
import json
import logging
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from srl_jax.errors import UserError

# Called with the number of rows read so far.
Progress = Callable[[int], None]
# Suffixes of the files that `local_rows` reads, and their forms for error messages.
SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".csv", ".tsv")
FORMS = "JSON lines, a JSON list, parquet, csv or tsv, each also as .gz but parquet"


def is_local(spec: str) -> bool:
  """Returns whether a source is a file or folder on this machine instead of a name on the hub.

  A name with the suffix of a file is local even if it is missing, so that the error is about the
  file.
  """
  if not spec:  # Path("") is the current folder
    return False
  return pathlib.Path(spec).exists() or spec.lower().removesuffix(".gz").endswith(SUFFIXES)


def read(
  source: str, path: str, split: str, progress: Progress | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row) for every row of a source.

  Args:
    source: "jsonl" (`path` is a file or folder) or "hub" (`path` is a dataset's name).
    path: of the data.
    split: of a dataset or a dataset's folder; not used for a file.
    progress: called after each row with the number of rows so far.

  Raises:
    UserError: the source is unknown, or `local_rows` or `hub_rows` raises it.
  """
  if source not in ("jsonl", "hub"):
    raise UserError(f"data.source={source!r}: use hub, jsonl or arithmetic")
  rows = local_rows(path, split) if source == "jsonl" else hub_rows(path, split)
  for number, (place, row) in enumerate(rows, start=1):
    yield place, row
    if progress:
      progress(number)


def local_rows(path: str | pathlib.Path, split: str = "train") -> Iterator[tuple[str, dict]]:
  """Yields (place, row) for every row of a file or of a dataset's folder.

  Args:
    path: a file in one of FORMS; a folder written by datasets' save_to_disk; or a clone of a hub
      dataset.
    split: of a folder.

  Raises:
    UserError: the path is missing, empty, damaged or of another form.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return _folder_rows(path, split)
  name = path.name.lower()
  if name.endswith(".parquet.gz"):
    raise UserError(f"{path}: parquet is compressed in itself; run gunzip and give the result")
  form = pathlib.Path(name.removesuffix(".gz")).suffix
  if form == ".parquet":
    return _not_empty(path, _parquet_rows(path))
  if form in (".csv", ".tsv"):
    return _not_empty(path, _csv_rows(path, "\t" if form == ".tsv" else ","))
  # The contents decide between JSON lines and a JSON list, as either may have either suffix.
  return _list_rows(path) if _begins_with_bracket(path) else json_lines(path)


def json_lines(path: str | pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row) for every line of a file of JSON objects; place is `file:line`.

  The file is streamed, and decompressed if its name ends with .gz. A byte order mark, CRLF line
  ends and blank lines are accepted.

  Raises:
    UserError: the file is missing or has no rows, or a line is not a valid JSON object.
  """
  path = pathlib.Path(path)
  empty = True
  # Lines are bytes, so that one that is not UTF-8 fails in `decode` below, where its number is
  # known.
  for number, line in enumerate(_lines(path), start=1):
    if number == 1:
      line = line.removeprefix(b"\xef\xbb\xbf")  # byte order mark, which Windows editors write
    if not line.strip():
      continue
    place = f"{path}:{number}"
    try:
      row = json.loads(line.decode())
    except (RecursionError, ValueError) as error:  # RecursionError: nested too deeply
      raise UserError(f"{place}: broken JSON: {error}; the forms read are {FORMS}") from error
    empty = False
    yield place, _object(place, row)
  if empty:
    raise UserError(f"{path} is empty: expected a JSON object on every line")


def _lines(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the lines of a file as bytes, decompressed if it is a .gz file."""
  if not path.is_file():
    raise UserError(f"{path} is not a file: give a file with one JSON object per line")
  with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
    try:
      yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise UserError(f"{path} is not a complete gzip file ({error}); copy it again") from error


def _begins_with_bracket(path: pathlib.Path) -> bool:
  """Returns whether a file is one JSON list: its first character other than white space is "["."""
  first = next((line for line in _lines(path) if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
  return first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _list_rows(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
  """Yields the objects of a JSON list, which is read as a whole; place is `file[index]`."""
  try:
    found = json.loads(b"".join(_lines(path)).decode("utf-8-sig"))
  except (RecursionError, ValueError) as error:
    raise UserError(f"{path}: broken JSON: {error}; the forms read are {FORMS}") from error
  if not found:
    raise UserError(f"{path} is empty: expected a list of JSON objects")
  for i, row in enumerate(found):
    yield f"{path}[{i}]", _object(f"{path}[{i}]", row)


def _object(place: str, row: Any) -> dict:
  """Returns a row; UserError if it is not a JSON object."""
  if not isinstance(row, dict):
    raise UserError(f"{place}: expected a JSON object, found a {type(row).__name__}")
  return row


def _csv_rows(path: pathlib.Path, delimiter: str) -> Iterator[tuple[str, dict]]:
  """Yields the rows of a table with a header; all values are strings. place is `file:line`."""
  csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is shorter than some solutions
  lines = (line.decode().removeprefix("\ufeff") for line in _lines(path))
  reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
  try:
    _check_unique(path, reader.fieldnames or [])
    for row in reader:
      place = f"{path}:{reader.line_num}"
      # DictReader puts additional fields under None, and None into missing ones.
      if None in row or None in row.values():
        raise UserError(
          f"{place}: the number of fields differs from the header's {len(reader.fieldnames)}"
        )
      yield place, row
  except (csv.Error, UnicodeDecodeError) as error:
    raise UserError(f"{path}:{reader.line_num + 1}: broken csv: {error}") from error


def _parquet_rows(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
  """Yields the rows of a parquet file, read in batches; place is `file row k`."""
  if not path.is_file():
    raise UserError(f"{path} is not a file: give a parquet file")
  import pyarrow  # installed with datasets; slow to import
  import pyarrow.parquet

  try:
    file = pyarrow.parquet.ParquetFile(path)
    _check_unique(path, file.schema_arrow.names)
    batches = file.iter_batches(batch_size=256)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    for k, row in enumerate(rows):
      yield f"{path} row {k}", row
  except (UnicodeDecodeError, OverflowError) as error:  # texts that are not UTF-8; odd dates
    raise UserError(f"{path}: a value cannot be read ({error}); write the file again") from error
  except (pyarrow.ArrowException, OSError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path} is not a complete parquet file ({reason}); copy it again") from error


def _check_unique(path: pathlib.Path, columns: Iterable[str]) -> None:
  """Raises UserError if two columns have one name: a row would have the last one's value only."""
  columns = list(columns)
  twice = sorted({name for name in columns if columns.count(name) > 1})
  if twice:
    raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one of them")


def _not_empty(path: pathlib.Path, rows: Iterable[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
  """Returns the rows unchanged; UserError if there are none."""
  rows = iter(rows)
  first = next(rows, None)
  if first is None:
    raise UserError(f"{path} is empty: it has no rows")
  return itertools.chain([first], rows)


def _folder_rows(path: pathlib.Path, split: str) -> Iterator[tuple[str, dict]]:
  """Yields the rows of a folder written by save_to_disk, or of a clone of a hub dataset."""
  import datasets  # imported late: it takes seconds, and files do not need it

  datasets.disable_progress_bars()
  # save_to_disk writes one of these two files; a clone has data files in any layout.
  on_disk = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
  try:
    if on_disk:
      found = datasets.load_from_disk(str(path))
      found = found[split] if isinstance(found, datasets.DatasetDict) else found
    else:
      found = datasets.load_dataset(str(path), split=split)
  except Exception as error:  # datasets and the file formats raise exceptions of many types
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"{path} is not a dataset's folder with a split {split!r} ({type(error).__name__}: {reason});"
      " give a folder of srl_jax.prepare or of datasets' save_to_disk, a clone of a hub dataset, or"
      f" a file ({FORMS})"
    ) from error
  yield from _dataset_rows(f"{path}[{split}]", found)


def _dataset_rows(name: str, rows: Iterable[dict]) -> Iterator[tuple[str, dict]]:
  """Yields (place, row) for every row of a dataset of the library datasets.

  Raises UserError for a row that cannot be read, such as one with an image.
  """
  rows, number = iter(rows), 0
  while True:
    place = f"{name} row {number}"
    try:
      row = next(rows, None)
    except Exception as error:  # the decoders of columns raise exceptions of many types
      reason = " ".join(str(error).split())[:200]
      raise UserError(
        f"{place} cannot be read ({type(error).__name__}: {reason}): write the columns of texts to"
        " a file of JSON lines and give that"
      ) from error
    if row is None:
      return
    yield place, row
    number += 1


def has_half_character(text: str) -> bool:
  """Returns whether a text contains a lone surrogate (half of a UTF-16 pair).

  JSON can express one, but it has no UTF-8 encoding: tokenizers and files reject it.
  """
  try:
    text.encode()
  except UnicodeEncodeError:
    return True
  return False


def hub_revision(name: str) -> str:
  """Returns the commit hash of a hub dataset in the local cache, or "" if it is not cached."""
  from huggingface_hub.constants import HF_HUB_CACHE

  folder = f"datasets--{name.replace('/', '--')}"
  path = pathlib.Path(HF_HUB_CACHE) / folder / "refs" / "main"
  return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def hub_rows(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row) for every row of a Hugging Face dataset; place is `name[split] row k`.

  Raises:
    UserError: the dataset cannot be loaded; the message includes the reason.
  """
  logging.getLogger("datasets").setLevel(logging.WARNING)  # at INFO it lists installed packages
  import datasets  # imported late: it takes seconds, and JSON lines do not need it

  # The hub's client warns before each of its retries; the error below is enough.
  logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
  try:
    rows = datasets.load_dataset(name, split=split)
  # The hub, its HTTP client, the cache and the file formats each raise exceptions of other types.
  except Exception as error:
    reason = " ".join(str(error).split())
    raise UserError(
      f"cannot load split {split!r} of {name!r} from the Hugging Face hub"
      f" ({type(error).__name__}: {reason}): check name, split and network, or download the data"
      f" and give the folder or the file ({FORMS})"
    ) from error
  yield from _dataset_rows(f"{name}[{split}]", rows)
