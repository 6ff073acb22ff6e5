"""The evaluations beside the runs: tables with standard errors, problems that turned.

An evaluation is an output folder of srl_jax.evaluate or evaluate_swe: settings.json and table.json.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from srl_jax.reporting.groups import cut
from srl_jax.reporting.privacy import public_settings, public_text
from srl_jax.reporting.reading import (
  Faults,
  RunFiles,
  distinct_names,
  is_finite,
  parse_object,
  whole_lines,
)

FOLDERS = 60  # evaluations of a page
CHANGED = 60  # problems that turned right, and as many that turned wrong, of a benchmark
_FIGURE = re.compile(r"(greedy|avg_at|pass_at|majority_at)_?(\d*)")
_KINDS = ("greedy", "avg_at", "pass_at", "majority_at")


def read_evaluations(runs: Sequence[RunFiles]) -> dict[str, Any]:
  """Returns {"evaluations", "changes", "reasoning", "faults"} of what is beside the runs.

  Evaluations are looked for in the workdirs, beside them, and in a folder `evals` beside them. An
  evaluation of another model counts if that is the model of one of the runs.
  """
  faults, found = Faults(), []
  folders = list(_folders(runs))
  for folder, name in zip(folders, distinct_names(folders)):
    read = _read(folder, name, runs, faults)
    if read:
      found.append(read)
  found.sort(key=lambda evaluation: (evaluation["is_run"], evaluation["name"]))
  found = found[:FOLDERS]
  changes = changes_of(found)
  for evaluation in found:
    del evaluation["answers"]
  return {
    "evaluations": found,
    "changes": changes,
    "reasoning": _reasoning(folders, faults),
    "faults": faults.all(),
  }


def _folders(runs: Sequence[RunFiles]) -> Iterator[pathlib.Path]:
  """Yields the folders with settings.json in and beside the workdirs, sorted."""
  places = set()
  for run in runs:
    workdir = run.folder.resolve()
    for start in (workdir, workdir.parent, workdir.parent / "evals"):
      places |= {path.parent for path in start.glob("settings.json")}
      places |= {path.parent for path in start.glob("*/settings.json")}
      places |= {path.parent for path in start.glob("*/reasoning.json")}
  yield from sorted(places)


def _read(
  folder: pathlib.Path, name: str, runs: Sequence[RunFiles], faults: Faults
) -> dict[str, Any] | None:
  """Returns an evaluation, or None if it is of no run of the page or cannot be read."""
  settings = _object(folder / "settings.json", name, faults)
  table = _object(folder / "table.json", name, faults)
  if settings is None or table is None:
    return None
  model = pathlib.PurePath(str(settings.get("model", ""))).name
  of_runs = {run.folder.resolve().name for run in runs}
  of_models = {pathlib.PurePath(str(run.config.get("model", ""))).name for run in runs}
  if model not in of_runs | of_models:
    return None
  shown = public_settings({key: settings[key] for key in settings if key != "system"})
  return {
    "name": public_text(name),
    "settings": {key: cut(str(value), 80) for key, value in shown.items()},
    "is_run": model in of_runs,
    "rows": rows_of(table),
    "answers": _answers(folder, name, faults),
  }


def _object(path: pathlib.Path, name: str, faults: Faults) -> dict[str, Any] | None:
  """Returns the object of a JSON file beside a run; None if it is missing or damaged."""
  try:
    found = parse_object(path.read_bytes())
  except OSError:
    return None
  if found is None:
    faults.add(f"{name}/{path.name}", "it is damaged and left out")
  return found


def rows_of(table: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns a row for each benchmark of table.json: name, figures, problems, unfinished share.

  "figures" is a list of {"name", "value", "se"}; shares, se is None for a single problem. A row of
  evaluate_swe is one of its settings.
  """
  rows = []
  benchmarks = table.get("benchmarks")
  for benchmark, found in benchmarks.items() if isinstance(benchmarks, dict) else ():
    if not isinstance(found, dict):
      continue
    figures = []
    for name in sorted(filter(_FIGURE.fullmatch, found), key=_order):
      if isinstance(found[name], dict) and is_finite(found[name].get("value")):
        figures.append({"name": name.replace("_at_", "@")} | found[name])
    passes = [p for p in (found.get("passes") or {}).values() if isinstance(p, dict)]
    first = passes[0] if passes else {}
    rows.append(_row(benchmark, figures, first.get("problems"), first.get("unfinished")))
  return rows + _rows_of_swe(table)


def _row(benchmark: str, figures: list, problems: Any, unfinished: Any) -> dict[str, Any]:
  return {
    "benchmark": cut(benchmark, 80),
    "figures": figures,
    "problems": problems if is_finite(problems) else None,
    "unfinished": unfinished if is_finite(unfinished) else None,
  }


def _rows_of_swe(table: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the rows of evaluate_swe's table.json, one for each setting."""
  rows = []
  settings = table.get("figures")
  for setting, found in settings.items() if isinstance(settings, dict) else ():
    figures = []
    resolved = found.get("resolved") if isinstance(found, dict) else None
    if isinstance(resolved, dict) and is_finite(resolved.get("value")):
      figures.append({"name": "resolved"} | resolved)
    for name in ("patch", "well_formed", "applied"):
      if isinstance(found, dict) and is_finite(found.get(name)):
        figures.append({"name": name, "value": found[name], "se": None})
    rows.append(_row(setting, figures, (found or {}).get("n"), (found or {}).get("cut_off")))
  return rows


def _order(name: str) -> tuple[int, int]:
  kind, k = _FIGURE.fullmatch(name).groups()
  return int(k or 0), _KINDS.index(kind)


# ---------------------------------------------------------------------------------- problems


def _answers(folder: pathlib.Path, name: str, faults: Faults) -> dict[str, dict[str, Any]]:
  """Returns {benchmark: {id: line of greedy.jsonl}} of the lines that can be shown."""
  found: dict[str, dict[str, Any]] = {}
  for path in sorted(folder.glob("*/greedy.jsonl")):
    of_file = Faults()
    for _, line in whole_lines(path, of_file):
      samples = line.get("samples")
      if isinstance(samples, list) and samples and isinstance(samples[0], dict):
        found.setdefault(path.parent.name, {})[str(line.get("id"))] = line
    for sentence in of_file.all():
      faults.add(f"{name}/{path.parent.name}/{path.name}", sentence.partition(": ")[2])
  return found


def changes_of(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns the problems whose greedy answer turned right or wrong against the first evaluation.

  The first one is of the untrained model where it was measured. Each entry has "before", "after",
  "benchmark", counts "right" and "wrong", and "problems", at most CHANGED of each kind.
  """
  changes = []
  for after in evaluations[1:]:
    before = evaluations[0]
    for benchmark, lines in after["answers"].items():
      common = lines.keys() & before["answers"].get(benchmark, {}).keys()
      problems = [_change(before["answers"][benchmark][id], lines[id]) for id in sorted(common)]
      turned = {kind: [p for p in problems if p and p["turned"] == kind] for kind in _TURNED}
      if common:
        changes.append(
          {
            "before": before["name"],
            "after": after["name"],
            "benchmark": benchmark,
            "common": len(common),
            "right": len(turned["right"]),
            "wrong": len(turned["wrong"]),
            "problems": turned["wrong"][:CHANGED] + turned["right"][:CHANGED],
          }
        )
  return changes


_TURNED = ("right", "wrong")


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns what is shown of a problem whose answer turned, else None."""
  first, last = before["samples"][0], after["samples"][0]
  if bool(first.get("right")) == bool(last.get("right")):
    return None
  return {
    "turned": "right" if last.get("right") else "wrong",
    "id": cut(str(after.get("id")), 100),
    "problem": cut(str(after.get("problem")), 1500),
    "gold": cut(str(after.get("gold")), 200),
    "before": cut(str(first.get("answer")), 200),
    "after": cut(str(last.get("answer")), 200),
    "solution": cut(str(last.get("solution")), 2500),
  }


# ---------------------------------------------------------------------------------- reasoning


def _reasoning(folders: Sequence[pathlib.Path], faults: Faults) -> list[dict[str, Any]]:
  """Returns the figures of srl_jax.evals.reasoning beside the runs: name, pictures."""
  found = []
  for folder in folders:
    result = _object(folder / "reasoning.json", folder.name, faults)
    if result and isinstance(result.get("pictures"), dict):
      found.append({"name": public_text(folder.name), "pictures": result["pictures"]})
  return found
