"""What the benchmarks' arguments may be, for argparse: said before anything is measured."""

import argparse
import os
import pathlib
from collections.abc import Callable, Iterable


def some_of(known: Iterable[str], separator: str = ",") -> Callable[[str], list[str]]:
  """Names out of `known`, `separator` between them."""
  known = list(known)

  def parse(text: str) -> list[str]:
    found = [name for name in text.split(separator) if name]
    unknown = [name for name in found if name not in known]
    if unknown or not found:
      what = f"{', '.join(unknown)} unknown" if unknown else "nothing named"
      raise argparse.ArgumentTypeError(f"{what}; there are {separator.join(known)}")
    return found

  return parse


def at_least(least: int) -> Callable[[str], int]:
  """A whole number, `least` or more."""

  def parse(text: str) -> int:
    if not text.isdigit() or int(text) < least:
      raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)

  return parse


def new_file(text: str) -> pathlib.Path:
  """A file that can be written."""
  path = pathlib.Path(text)
  if path.is_dir() or not os.access(path.parent, os.W_OK):
    raise argparse.ArgumentTypeError(
      f"{text} cannot be written; name a file in a folder that is there"
    )
  return path
