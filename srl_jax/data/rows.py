"""Reads the rows of a data set; each row is paired with its place for error messages."""

import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from srl_jax.errors import UserError


def read(source: str, path: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row) for every row of a source.

  Args:
    source: "jsonl" (`path` is a file) or "hub" (`path` is a dataset's name, `split` its split).
    path: a file or the name of a Hugging Face dataset.
    split: name of the dataset's split; not used for a file.

  Raises:
    UserError: the source is unknown, or `json_lines` or `hub_rows` raises it.
  """
  if source == "jsonl":
    return json_lines(path)
  if source == "hub":
    return hub_rows(path, split)
  raise UserError(f"data.source={source!r}: use hub, jsonl or arithmetic")


def json_lines(path: str | pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, row) for every line of a file of JSON objects; place is `file:line`.

  The file is streamed. A byte order mark, CRLF line ends and blank lines are accepted.

  Raises:
    UserError: the file is missing or has no rows, or a line is not a valid JSON object.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"{path} is not a file: give a file with one JSON object per line")
  empty = True
  # Bytes instead of text: a line that is not UTF-8 then fails in `decode` below, where its number
  # is known.
  with path.open("rb") as file:
    for number, line in enumerate(file, start=1):
      if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")  # byte order mark, which Windows editors write
      if not line.strip():
        continue
      place = f"{path}:{number}"
      try:
        row = json.loads(line.decode())
      except (RecursionError, ValueError) as error:  # RecursionError: nested too deeply
        raise UserError(f"{place}: broken JSON: {error}") from error
      if not isinstance(row, dict):
        raise UserError(f"{place}: expected a JSON object, found a {type(row).__name__}")
      empty = False
      yield place, row
  if empty:
    raise UserError(f"{path} is empty: expected a JSON object on every line")


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
      " and give the file"
    ) from error
  for number, row in enumerate(rows):
    yield f"{name}[{split}] row {number}", row
