"""The table of an evaluation, as text, Markdown and JSON.

Each begins with a line on what was measured: model, mode, prompt style, sampling.
"""

import json
import pathlib
import re

from srl_jax import folders
from srl_jax.evals import passes
from srl_jax.evals.columns import aligned
from srl_jax.evals.figures import figures, paper_average

# The names under which `figures` has them; its "passes" is no figure.
_FIGURE = re.compile(r"(greedy|avg_at|pass_at|majority_at)_?(\d*)")
_ORDER = ("greedy", "avg_at", "pass_at", "majority_at")
_FOOT = (
  "in percent, +- the standard error over problems; unfinished: responses that did not come to"
  " their end"
)


def write(output: pathlib.Path, settings: dict) -> str:
  """Writes table.{txt,md,json} of all finished passes in the folder of an evaluation.

  Returns the text. The JSON has settings, benchmarks ({benchmark: figures}) and average.
  """
  found = {benchmark: figures(lines) for benchmark, lines in passes.read(output).items()}
  table = {"settings": settings, "benchmarks": found, "average": paper_average(found)}
  rendered = {
    "txt": as_text(table),
    "md": as_markdown(table),
    "json": json.dumps(table, indent=1, ensure_ascii=False),
  }
  for suffix, text in rendered.items():
    folders.write_text(output / f"table.{suffix}", text + "\n")
  return rendered["txt"]


def heading(settings: dict) -> str:
  """One line on what was measured, from evaluate's settings."""
  step = "" if settings["step"] is None else f", step {settings['step']}"
  # A server has its own type, which the settings do not hold.
  dtype = f", {settings['dtype']}" if settings["engine"] == "builtin" else ""
  style = "next step" if settings["mode"] == "stepwise" else settings["style"]
  return (
    f"{settings['model']}{step}: mode {settings['mode']}, prompt style {style}, @k at temperature"
    f" {settings['temperature']:g}, at most {settings['max_tokens']} tokens a response,"
    f" {settings['engine']} engine{dtype}"
  )


def as_text(table: dict) -> str:
  """The table in aligned columns. `table` is what evaluate writes as table.json."""
  lines = aligned(_rows(table["benchmarks"]))
  return "\n".join([heading(table["settings"]), *lines, _average(table), _FOOT])


def as_markdown(table: dict) -> str:
  """The table in Markdown."""
  rows = _rows(table["benchmarks"])
  head, *body = (f"| {' | '.join(row)} |" for row in rows)
  rule = "|---|" + "---:|" * (len(rows[0]) - 1)
  foot = f"{_average(table)}; {_FOOT}."
  return "\n".join([heading(table["settings"]), "", head, rule, *body, "", foot])


def _average(table: dict) -> str:
  return f"average of the greedy and avg@k figures: {100 * table['average']:.1f}"


def _rows(benchmarks: dict[str, dict]) -> list[list[str]]:
  """The head and a row for each benchmark, all cells as text."""
  names = _figure_names(benchmarks)
  heads = [name.replace("_at_", "@") for name in names]
  rows = [["benchmark", "problems", *heads, "unfinished"]]
  for benchmark, found in benchmarks.items():
    problems, unfinished = [], []
    for shape in found["passes"].values():
      problems.append(str(shape["problems"]))
      unfinished.append(f"{100 * shape['unfinished']:.1f}")
    cells = [_cell(found.get(name)) for name in names]
    # One number of problems where all passes have the same.
    rows.append([benchmark, "/".join(dict.fromkeys(problems)), *cells, "/".join(unfinished)])
  return rows


def _figure_names(benchmarks: dict[str, dict]) -> list[str]:
  """The figures that any benchmark has: greedy, then those of each k in the order of _ORDER."""
  places = {}
  for name in set().union(*benchmarks.values()):
    if match := _FIGURE.fullmatch(name):
      kind, k = match.groups()
      places[name] = int(k or 0), _ORDER.index(kind)  # greedy has no k and is the first
  return sorted(places, key=places.get)


def _cell(figure: dict | None) -> str:
  if figure is None:
    return "-"
  error = "" if figure["se"] is None else f" +- {100 * figure['se']:.1f}"
  return f"{100 * figure['value']:.1f}{error}"
