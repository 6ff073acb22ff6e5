"""Reads workdirs of runs, also unfinished and damaged ones: what is whole, and what is not."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from srl_jax import folders
from srl_jax.errors import UserError

_STEP_FILE = re.compile(r"step_(\d+)(\.\d+)?\.jsonl")  # with the process, if there were several
FAULTS_SHOWN = 10  # of a file; the others are counted


@dataclasses.dataclass
class RunFiles:
  """What the files of a workdir contain.

  Attributes:
    name: the end of the workdir's path, long enough to differ from the other runs of the page.
    folder: the workdir.
    config: flat, {"a.b": value}; empty without a readable config.json.
    metrics: a line for each step, ascending; finite numbers only.
    summary: of a finished run, else None.
    rollouts: (step, file of its groups), ascending.
    faults: a sentence for each part that could not be read.
  """

  name: str
  folder: pathlib.Path
  config: dict[str, Any]
  metrics: list[dict[str, float]]
  summary: dict[str, Any] | None
  rollouts: list[tuple[int, pathlib.Path]]
  faults: list[str]


class Faults:
  """Sentences about unreadable parts: the first FAULTS_SHOWN of each file, then a count."""

  def __init__(self):
    self.sentences: list[str] = []
    self._counts: dict[str, int] = {}

  def add(self, file: str, what: str) -> None:
    count = self._counts[file] = self._counts.get(file, 0) + 1
    if count <= FAULTS_SHOWN:
      self.sentences.append(f"{file}: {what}")

  def all(self) -> list[str]:
    """Returns the sentences, with one more for each file that had further faults."""
    more = []
    for file, count in self._counts.items():
      if count > FAULTS_SHOWN:
        more.append(f"{file}: {count - FAULTS_SHOWN} further parts are damaged")
    return self.sentences + more


def read_runs(workdirs: Sequence[str | pathlib.Path]) -> list[RunFiles]:
  """Returns the runs in the order of `workdirs`.

  Raises UserError if one is no folder or has none of a run's files, or one is named twice.
  """
  paths = [pathlib.Path(workdir) for workdir in workdirs]
  if not paths:
    raise UserError("--workdirs: name at least one folder of a run")
  resolved = [path.resolve() for path in paths]
  for path, full in zip(paths, resolved):
    if resolved.count(full) > 1:
      raise UserError(f"--workdirs: {path} is named twice")
    if not any((path / name).exists() for name in ("config.json", "metrics.jsonl", "rollouts")):
      raise UserError(
        f"--workdirs: {path} has no run: expected config.json and metrics.jsonl in it"
      )
  return [read_run(path, name) for path, name in zip(paths, distinct_names(resolved))]


def read_run(folder: pathlib.Path, name: str) -> RunFiles:
  """Returns the run in a workdir; parts that cannot be read are named in `faults`."""
  faults = Faults()
  config = _json_object(folder / "config.json", faults)
  if config is None and not (folder / "config.json").exists():
    faults.add("config.json", "it is missing, so the run's settings are not known")
  metrics = read_metrics(folder / "metrics.jsonl", faults)
  summary = _json_object(folder / "summary.json", faults)
  rollouts = []
  for path in (folder / "rollouts").glob("step_*.jsonl"):
    if match := _STEP_FILE.fullmatch(path.name):
      rollouts.append((int(match[1]), path))
  flat = folders.flatten(config) if config else {}
  return RunFiles(name, folder, flat, metrics, summary, sorted(rollouts), faults.all())


def distinct_names(paths: Sequence[pathlib.Path]) -> list[str]:
  """Returns for each path its last parts, as few as make all names different.

  A last part that all of them share, as RUN/run, is left out.
  """
  if len(paths) > 1 and len({path.name for path in paths}) == 1:
    return distinct_names([path.parent for path in paths])
  names = []
  for path in paths:
    others = [other for other in paths if other != path]
    parts = 1
    while parts < len(path.parts) and any(_end(path, parts) == _end(o, parts) for o in others):
      parts += 1
    names.append(_end(path, parts))
  return names


def _end(path: pathlib.Path, parts: int) -> str:
  return "/".join(path.parts[-parts:])


def read_metrics(path: pathlib.Path, faults: Faults) -> list[dict[str, float]]:
  """Returns the lines of metrics.jsonl by step; of two lines for one step, the later one."""
  by_step = {}
  for number, line in whole_lines(path, faults):
    step = line.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
      faults.add(path.name, f"line {number} has no step and is left out")
      continue
    by_step[step] = {key: float(value) for key, value in line.items() if is_finite(value)}
  return [by_step[step] for step in sorted(by_step)]


def is_finite(value: Any) -> bool:
  """Returns whether a value of JSON is a number that a float can hold; true and false are none."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:  # an integer with hundreds of digits
    return False


def whole_lines(path: pathlib.Path, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number, object) of each line that is a whole JSON object; the others are faults."""
  for number, line, _ in raw_lines(path, faults):
    found = parse_object(line)
    if found is None:
      end = "" if line.endswith(b"\n") else ", the last one, was not written to its end"
      faults.add(path.name, f"line {number}{end or ' is damaged'} and is left out")
    else:
      yield number, found


def raw_lines(path: pathlib.Path, faults: Faults) -> Iterator[tuple[int, bytes, int]]:
  """Yields (number, line, its first byte's offset); nothing if the file is missing."""
  offset = 0
  try:
    with path.open("rb") as file:
      for number, line in enumerate(file, start=1):
        if line.strip():
          yield number, line, offset
        offset += len(line)
  except FileNotFoundError:
    return
  except OSError as error:
    faults.add(path.name, f"it cannot be read ({error.strerror})")


def parse_object(line: bytes) -> dict[str, Any] | None:
  """Returns a line's JSON object; None if it is none."""
  try:
    found = json.loads(line)
  except (ValueError, RecursionError):  # RecursionError: nested too deeply
    return None
  return found if isinstance(found, dict) else None


def _json_object(path: pathlib.Path, faults: Faults) -> dict[str, Any] | None:
  """Returns the object of a JSON file; None if it is missing or damaged."""
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return None
  except OSError as error:
    faults.add(path.name, f"it cannot be read ({error.strerror})")
    return None
  found = parse_object(data)
  if found is None:
    faults.add(path.name, "it is damaged and left out")
  return found
