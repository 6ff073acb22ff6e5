"""Aligns rows of text in columns, for the printed tables of results."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Returns one line of text per row: the first column left-aligned, the others right-aligned.

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
