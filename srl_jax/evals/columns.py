"""Rows of text in aligned columns, as all tables of results are printed."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """One line of text for each row: the first column flush left, the others flush right.

  Args:
    rows: cells as text, the same number in each row.
  """
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = []
  for first, *others in rows:
    cells = [first.ljust(widths[0])]
    for cell, width in zip(others, widths[1:]):
      cells.append(cell.rjust(width))
    lines.append("  ".join(cells).rstrip())
  return lines
