"""Rows of a table with the place of each, so that an error message can name file and line."""

import json
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from srl_jax.errors import UserError

# Called with the number of rows read so far.
Progress = Callable[[int], None]


def read(
  source: str, path: str, split: str, progress: Progress | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row) for every row of a source.

  Args:
    source: jsonl (`path` is a file) or hub (`path` is a dataset's name, `split` its split).
    progress: called after each row.

  Raises:
    UserError: an unknown source, or as `json_lines` and `hub_rows`.
  """
  if source not in ("jsonl", "hub"):
    raise UserError(f"data.source={source!r}: use hub, jsonl or arithmetic")
  rows = json_lines(path) if source == "jsonl" else hub_rows(path, split)
  for number, (place, row) in enumerate(rows, start=1):
    yield place, row
    if progress:
      progress(number)


def json_lines(path: str | pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row) for every line of a file of JSON objects; place is `file:line`.

  The file is streamed. A byte order mark, CRLF and blank lines are fine.

  Raises:
    UserError: the file is missing or has no row, or a line is broken or holds no object.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"{path} does not exist or is no file: give a file with a JSON object a line")
  empty = True
  with path.open("rb") as file:
    for number, line in enumerate(file, start=1):
      if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
      if not line.strip():
        continue
      place = f"{path}:{number}"
      try:
        row = json.loads(line.decode())
      except (RecursionError, ValueError) as error:
        raise UserError(f"{place}: broken JSON: {error}") from error
      if not isinstance(row, dict):
        raise UserError(f"{place}: expected a JSON object, found a {type(row).__name__}")
      empty = False
      yield place, row
  if empty:
    raise UserError(f"{path} is empty: expected a JSON object on every line")


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
      " and give the file"
    ) from error
  for number, row in enumerate(rows):
    yield f"{name}[{split}] row {number}", row
