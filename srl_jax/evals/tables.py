"""Writes the table of an evaluation as text, Markdown and JSON.

Each begins with a line about the evaluation: model, mode, prompt style, sampling.
"""

import json
import pathlib
import re

from srl_jax import folders
from srl_jax.evals import passes
from srl_jax.evals.columns import aligned
from srl_jax.evals.figures import figures, paper_average

# The keys of `figures` that are figures; its key "passes" is not one.
_FIGURE = re.compile(r"(greedy|avg_at|pass_at|majority_at)_?(\d*)")
_ORDER = ("greedy", "avg_at", "pass_at", "majority_at")
_FOOT = (
  "in percent, +- the standard error over problems; unfinished: responses that were cut off before"
  " their end"
)


def write(output: pathlib.Path, settings: dict) -> str:
  """Writes table.{txt,md,json} of all finished passes in an evaluation's folder; returns the text.

  The JSON has settings, benchmarks ({benchmark: figures}) and average.
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
  """Returns one line about an evaluation, from its settings."""
  step = "" if settings["step"] is None else f", step {settings['step']}"
  # A server's dtype is not known here.
  dtype = f", {settings['dtype']}" if settings["engine"] == "builtin" else ""
  style = "next step" if settings["mode"] == "stepwise" else settings["style"]
  return (
    f"{settings['model']}{step}: mode {settings['mode']}, prompt style {style}, @k at temperature"
    f" {settings['temperature']:g}, at most {settings['max_tokens']} tokens a response,"
    f" {settings['engine']} engine{dtype}"
  )


def as_text(table: dict) -> str:
  """Returns the table in aligned columns. `table` is the content of table.json."""
  lines = aligned(_rows(table["benchmarks"]))
  return "\n".join([heading(table["settings"]), *lines, _average(table), _FOOT])


def as_markdown(table: dict) -> str:
  """Returns the table in Markdown. `table` is the content of table.json."""
  rows = _rows(table["benchmarks"])
  head, *body = (f"| {' | '.join(row)} |" for row in rows)
  # The alignment row of Markdown: all columns but the first are right-aligned.
  rule = "|---|" + "---:|" * (len(rows[0]) - 1)
  foot = f"{_average(table)}; {_FOOT}."
  return "\n".join([heading(table["settings"]), "", head, rule, *body, "", foot])


def _average(table: dict) -> str:
  """Returns the line below the table with the paper's average."""
  return f"average of the greedy and avg@k figures: {100 * table['average']:.1f}"


def _rows(benchmarks: dict[str, dict]) -> list[list[str]]:
  """Returns the head and one row per benchmark, all cells as text."""
  names = _figure_names(benchmarks)
  heads = [name.replace("_at_", "@") for name in names]
  rows = [["benchmark", "problems", *heads, "unfinished"]]
  for benchmark, found in benchmarks.items():
    problems, unfinished = [], []
    for shape in found["passes"].values():
      problems.append(str(shape["problems"]))
      unfinished.append(f"{100 * shape['unfinished']:.1f}")
    cells = [_cell(found.get(name)) for name in names]
    # The number of problems appears once if all passes have the same.
    rows.append([benchmark, "/".join(dict.fromkeys(problems)), *cells, "/".join(unfinished)])
  return rows


def _figure_names(benchmarks: dict[str, dict]) -> list[str]:
  """Returns the names of all figures: greedy, then for each k the kinds in the order of _ORDER."""
  places = {}
  for name in set().union(*benchmarks.values()):
    if match := _FIGURE.fullmatch(name):
      kind, k = match.groups()
      places[name] = int(k or 0), _ORDER.index(kind)  # greedy has no k, so it sorts first
  return sorted(places, key=places.get)


def _cell(figure: dict | None) -> str:
  """Returns a figure in percent with its standard error, "-" if it was not measured."""
  if figure is None:
    return "-"
  error = "" if figure["se"] is None else f" +- {100 * figure['se']:.1f}"
  return f"{100 * figure['value']:.1f}{error}"
