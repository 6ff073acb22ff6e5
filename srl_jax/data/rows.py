"""Rows of a table with the place of each, so that an error message can name file and line."""

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
SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".csv", ".tsv")
FORMS = "JSON lines, a JSON list, parquet, csv or tsv, each also as .gz but parquet"


def is_local(spec: str) -> bool:
  """Whether a source is a file or a folder here, or a name of the hub.

  A name that ends like a file is one even if it is missing: the error is then about the file.
  """
  if not spec:  # Path("") is the current folder
    return False
  return pathlib.Path(spec).exists() or spec.removesuffix(".gz").endswith(SUFFIXES)


def read(
  source: str, path: str, split: str, progress: Progress | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row) for every row of a source.

  Args:
    source: jsonl (`path` is a file or folder) or hub (`path` is a dataset's name, `split` its
      split).
    progress: called after each row.

  Raises:
    UserError: an unknown source, or as `local_rows` and `hub_rows`.
  """
  if source not in ("jsonl", "hub"):
    raise UserError(f"data.source={source!r}: use hub, jsonl or arithmetic")
  rows = local_rows(path, split) if source == "jsonl" else hub_rows(path, split)
  for number, (place, row) in enumerate(rows, start=1):
    yield place, row
    if progress:
      progress(number)


def local_rows(path: str | pathlib.Path, split: str = "train") -> Iterator[tuple[str, dict]]:
  """Yields (place, row) for every row of a file, or of a dataset's folder.

  Args:
    path: a file in one of FORMS; a folder that datasets' save_to_disk wrote, or a clone of a hub
      dataset.
    split: of a folder.

  Raises:
    UserError: the path is missing, empty, damaged or of another form.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return _folder_rows(path, split)
  form = path.with_suffix("") if path.suffix == ".gz" else path
  if form.suffix == ".parquet":
    return _not_empty(path, _parquet_rows(path))
  if form.suffix in (".csv", ".tsv"):
    return _not_empty(path, _csv_rows(path, "\t" if form.suffix == ".tsv" else ","))
  return _list_rows(path) if _begins_with_bracket(path) else json_lines(path)


def json_lines(path: str | pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row) for every line of a file of JSON objects; place is `file:line`.

  The file is streamed, and decompressed if its name ends with .gz. A byte order mark, CRLF and
  blank lines are fine.

  Raises:
    UserError: the file is missing or has no row, or a line is broken or holds no object.
  """
  path = pathlib.Path(path)
  empty = True
  for number, line in enumerate(_lines(path), start=1):
    if number == 1:
      line = line.removeprefix(b"\xef\xbb\xbf")
    if not line.strip():
      continue
    place = f"{path}:{number}"
    try:
      row = json.loads(line.decode())
    except (RecursionError, ValueError) as error:
      raise UserError(f"{place}: broken JSON: {error}; the forms read are {FORMS}") from error
    empty = False
    yield place, _object(place, row)
  if empty:
    raise UserError(f"{path} is empty: expected a JSON object on every line")


def _lines(path: pathlib.Path) -> Iterator[bytes]:
  if not path.is_file():
    raise UserError(f"{path} does not exist or is no file: give a file with a JSON object a line")
  with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
    try:
      yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise UserError(f"{path}: not a whole gzip file ({error}); copy it again") from error


def _begins_with_bracket(path: pathlib.Path) -> bool:
  """Whether a file holds one JSON list: its first character is "[" and its first line no object."""
  first = next((line for line in _lines(path) if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
  return first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _list_rows(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
  """The objects of a JSON list, which is read as a whole; place is `file[index]`."""
  try:
    found = json.loads(b"".join(_lines(path)).decode("utf-8-sig"))
  except (RecursionError, ValueError) as error:
    raise UserError(f"{path}: broken JSON: {error}; the forms read are {FORMS}") from error
  if not found:
    raise UserError(f"{path} is empty: expected a list of JSON objects")
  for i, row in enumerate(found):
    yield f"{path}[{i}]", _object(f"{path}[{i}]", row)


def _object(place: str, row: Any) -> dict:
  if not isinstance(row, dict):
    raise UserError(f"{place}: expected a JSON object, found a {type(row).__name__}")
  return row


def _csv_rows(path: pathlib.Path, delimiter: str) -> Iterator[tuple[str, dict]]:
  """The rows of a table with a header; every value is a text. place is `file:line`."""
  csv.field_size_limit(sys.maxsize)  # a solution may be longer than the default, 128 KiB
  lines = (line.decode().removeprefix("\ufeff") for line in _lines(path))
  reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
  try:
    for row in reader:
      place = f"{path}:{reader.line_num}"
      if None in row or None in row.values():
        raise UserError(
          f"{place}: another number of fields than the header's {len(reader.fieldnames)}"
        )
      yield place, row
  except (csv.Error, UnicodeDecodeError) as error:
    raise UserError(f"{path}:{reader.line_num + 1}: broken csv: {error}") from error


def _parquet_rows(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
  """The rows of a parquet file, some at a time; place is `file row k`."""
  if not path.is_file():
    raise UserError(f"{path} does not exist or is no file: give a parquet file")
  import pyarrow  # of datasets; slow to import
  import pyarrow.parquet

  try:
    batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    for k, row in enumerate(rows):
      yield f"{path} row {k}", row
  except (pyarrow.ArrowException, OSError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path}: not a whole parquet file ({reason}); copy it again") from error


def _not_empty(path: pathlib.Path, rows: Iterable[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
  rows = iter(rows)
  first = next(rows, None)
  if first is None:
    raise UserError(f"{path} is empty: it has no rows")
  return itertools.chain([first], rows)


def _folder_rows(path: pathlib.Path, split: str) -> Iterator[tuple[str, dict]]:
  """The rows of a folder that save_to_disk wrote, or of a clone of a hub dataset."""
  import datasets  # slow to import, and files do not need it

  datasets.disable_progress_bars()
  on_disk = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
  try:
    if on_disk:
      found = datasets.load_from_disk(str(path))
      found = found[split] if isinstance(found, datasets.DatasetDict) else found
    else:
      found = datasets.load_dataset(str(path), split=split)
  except Exception as error:  # datasets and the formats have errors of their own
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"{path}: no dataset's folder with a split {split!r} ({type(error).__name__}: {reason}); give"
      " a folder of srl_jax.prepare, of datasets' save_to_disk, a clone of a hub dataset, or a file"
      f" ({FORMS})"
    ) from error
  for number, row in enumerate(found):
    yield f"{path}[{split}] row {number}", row


def has_half_character(text: str) -> bool:
  """Whether a text has a lone surrogate, which JSON may have but no tokenizer and no file takes."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return True
  return False


def hub_revision(name: str) -> str:
  """Returns the commit of a hub dataset's files in the local cache, "" where none is known."""
  from huggingface_hub.constants import HF_HUB_CACHE

  folder = f"datasets--{name.replace('/', '--')}"
  path = pathlib.Path(HF_HUB_CACHE) / folder / "refs" / "main"
  return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def hub_rows(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row) for every row of a Hugging Face dataset; place is `name[split] row k`.

  Raises:
    UserError: the dataset cannot be loaded; the message has the reason.
  """
  logging.getLogger("datasets").setLevel(logging.WARNING)  # at INFO it lists installed packages
  import datasets  # slow to import, and files do not need it

  # The hub's client warns before each of its retries; the error below is enough.
  logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
  try:
    rows = datasets.load_dataset(name, split=split)
  except Exception as error:  # the hub, its HTTP client, the cache and the formats have their own
    reason = " ".join(str(error).split())
    raise UserError(
      f"cannot load split {split!r} of {name!r} from the Hugging Face hub"
      f" ({type(error).__name__}: {reason}): check name, split and network, or download the data"
      f" and give the folder or the file ({FORMS})"
    ) from error
  for number, row in enumerate(rows):
    yield f"{name}[{split}] row {number}", row
