"""The table of an evaluation, as text, Markdown and JSON.

Each begins with a line on what was measured: model, mode, prompt style, sampling.
"""

import json
import pathlib
import re

from srl_jax.evals import passes
from srl_jax.evals.figures import figures, paper_average

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
    (output / f"table.{suffix}").write_text(text + "\n", encoding="utf-8")
  return rendered["txt"]


def heading(settings: dict) -> str:
  """One line on what was measured, from evaluate's settings."""
  step = "" if settings["step"] is None else f", step {settings['step']}"
  dtype = (
    f", {settings['dtype']}" if settings["engine"] == "builtin" else ""
  )  # a server has its own
  style = "next step" if settings["mode"] == "stepwise" else settings["style"]
  return (
    f"{settings['model']}{step}: mode {settings['mode']}, prompt style {style}, @k at temperature"
    f" {settings['temperature']:g}, at most {settings['max_tokens']} tokens a response,"
    f" {settings['engine']} engine{dtype}"
  )


def as_text(table: dict) -> str:
  """The table in aligned columns. `table` is what evaluate writes as table.json."""
  rows = _rows(table["benchmarks"])
  widths = [max(map(len, column)) for column in zip(*rows)]
  pad = lambda row: [cell.rjust(width) for cell, width in zip(row, widths)]
  lines = ["  ".join([row[0].ljust(widths[0]), *pad(row)[1:]]) for row in rows]
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
  columns = {}  # (k, place in _ORDER) -> (name, head)
  for name in {name for found in benchmarks.values() for name in found}:
    if match := _FIGURE.fullmatch(name):
      kind, k = match.groups()
      head = kind.replace("_at", "@") + k
      columns[int(k or 0), _ORDER.index(kind)] = name, head
  chosen = [columns[key] for key in sorted(columns)]
  rows = [["benchmark", "problems", *(head for _, head in chosen), "unfinished"]]
  for benchmark, found in benchmarks.items():
    passes = found["passes"].values()
    problems = "/".join(map(str, dict.fromkeys(one["problems"] for one in passes)))
    unfinished = "/".join(f"{100 * one['unfinished']:.1f}" for one in passes)
    cells = (_cell(found.get(name)) for name, _ in chosen)
    rows.append([benchmark, problems, *cells, unfinished])
  return rows


def _cell(figure: dict | None) -> str:
  if figure is None:
    return "-"
  error = "" if figure["se"] is None else f" +- {100 * figure['se']:.1f}"
  return f"{100 * figure['value']:.1f}{error}"
