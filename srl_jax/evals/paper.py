"""The paper's Tables 1 to 3, with our results beside them."""

import json
import pathlib
from collections.abc import Sequence

from srl_jax.evals.columns import aligned
from srl_jax.evals.figures import is_in_average, paper_average

# The tables' columns as (benchmark, figure).
COLUMNS = (
  *(("amc23", "avg_at_32"), ("amc23", "greedy"), ("aime24", "avg_at_32"), ("aime24", "greedy")),
  *(("aime25", "avg_at_32"), ("aime25", "greedy"), ("minerva_math", "greedy")),
)
# Accuracies in percent, in the order of COLUMNS. The tables' last column is their mean, except for
# SRL, for which they print 27.6 although the mean is 26.9. We always print the mean.
PAPER = {
  "base": (49.3, 50.0, 10.5, 13.3, 7.5, 6.7, 34.9),
  "s1k_7b": (24.1, 25.0, 2.2, 3.3, 3.7, 3.3, 20.2),
  "sft_reasoning": (26.8, 40.0, 3.9, 10.0, 5.4, 10.0, 20.2),
  "sft_outline": (36.2, 27.5, 5.1, 3.3, 3.8, 6.7, 31.6),
  "rlvr_math": (52.0, 47.5, 11.1, 10.0, 7.4, 10.0, 33.8),
  "sft_rlvr_math": (37.6, 35.0, 4.9, 3.3, 4.5, 6.7, 30.1),
  "srl_math": (51.5, 50.0, 13.2, 16.7, 7.1, 13.3, 36.4),
  "srl_rlvr_math": (52.1, 57.5, 13.3, 20.0, 8.6, 10.0, 36.4),
  "srl_math_no_filter": (48.5, 52.5, 11.1, 13.3, 6.8, 6.7, 33.8),
  "one_step_math": (51.8, 52.5, 11.7, 13.3, 6.9, 10.0, 34.9),
}


def side_by_side(rows: Sequence[tuple[str, str, Sequence[pathlib.Path]]]) -> str:
  """Returns our figures and the paper's as text, two lines per row, in percent.

  The average is the mean of all greedy and avg@k figures. Ours may have another k, or benchmarks
  that the paper does not report, and is then not comparable; the column heads show which figures it
  has.

  Args:
    rows: (name in PAPER, title, output folders of its evaluations).
  """
  tables = {name: _read(folders) for name, _, folders in rows}
  columns = _columns(tables.values())
  lines = [["", "", *map(" ".join, columns), "average"]]
  for name, title, _ in rows:
    lines.append([title, "ours", *_ours(tables[name], columns)])
    lines.append(["", "paper", *_papers(name, columns)])
  text = aligned(lines)
  text.append("in percent; average: of the greedy and avg@k figures; ours by evaluate:")
  for _, title, folders in rows:
    text.append(f"  {title}: {_settings(folders)}")
  return "\n".join(text)


def _settings(folders: Sequence[pathlib.Path]) -> str:
  """Returns a row's mode, prompt style and token limit, and its share of truncated responses."""
  found = []
  for table in _tables(folders):
    settings = table["settings"]
    passes = []
    for figures in table["benchmarks"].values():
      passes += figures["passes"].values()
    # The mean share over passes; a high one means that --max_tokens was too small.
    cut = sum(run["unfinished"] for run in passes) / max(len(passes), 1)
    found.append(
      f"mode {settings['mode']}, prompt style {settings['style']}, at most "
      f"{settings['max_tokens']:,} tokens a response, {cut:.1%} unfinished"
    )
  return "; ".join(dict.fromkeys(found)) or "not yet"


def _read(folders: Sequence[pathlib.Path]) -> dict:
  """Returns {benchmark: figures} of all tables in the folders."""
  found = {}
  for table in _tables(folders):
    found |= table["benchmarks"]  # if two folders have the same benchmark, the later one counts
  return found


def _tables(folders: Sequence[pathlib.Path]) -> list[dict]:
  """Returns the tables of those folders that have one."""
  paths = [folder / "table.json" for folder in folders]
  return [json.loads(path.read_text("utf-8")) for path in paths if path.exists()]


def _columns(tables) -> list[tuple[str, str]]:
  """Returns the (benchmark, figure) columns of our tables, sorted as in the paper."""
  found = set()
  for table in tables:
    for benchmark, figures in table.items():
      found.update((benchmark, name) for name in filter(is_in_average, figures))
  # Nothing is measured yet: show the paper's columns.
  if not found:
    return list(COLUMNS)
  return sorted(found, key=_place)


def _place(column: tuple[str, str]) -> tuple:
  """Returns a sort key: the paper's columns in its order, then all others by name."""
  in_paper = _paper_column(column)
  index = COLUMNS.index(in_paper) if in_paper in COLUMNS else len(COLUMNS)
  return index, column


def _paper_column(column: tuple[str, str]) -> tuple[str, str]:
  """Returns the paper's column for one of ours; the paper's k is always 32."""
  benchmark, figure = column
  return benchmark, "avg_at_32" if figure.startswith("avg_at_") else figure


def _ours(table: dict, columns) -> list[str]:
  """Returns the cells of our line, "-" for figures that were not measured."""
  if not table:
    return ["-"] * (len(columns) + 1)
  cells = []
  for benchmark, figure in columns:
    value = table.get(benchmark, {}).get(figure, {}).get("value")
    cells.append(_cell(None if value is None else 100 * value))
  return [*cells, _cell(100 * paper_average(table))]


def _papers(name: str, columns) -> list[str]:
  """Returns the cells of the paper's line, "-" for figures that it does not report."""
  paper = dict(zip(COLUMNS, PAPER[name]))
  cells = [_cell(paper.get(_paper_column(column))) for column in columns]
  return [*cells, _cell(sum(paper.values()) / len(paper))]


def _cell(percent: float | None) -> str:
  return "-" if percent is None else f"{percent:.1f}"
