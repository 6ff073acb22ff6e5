"""Plots of two distributions side by side, written as SVG text without a plotting library.

A panel is a function of its left edge that returns SVG; `page` arranges panels in a row.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

COLOURS = ("#4c78a8", "#e4812f")
WIDTH, HEIGHT = 380, 300  # of a panel in pixels, including its labels
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 40, 46  # margins around the axes
BINS = 30

Panel = Callable[[float], str]  # x of the panel's left edge -> SVG


def page(labels: Sequence[str], panels: Sequence[Panel]) -> str:
  """Returns the whole picture: a legend with two labels, then the panels from left to right."""
  width, height = WIDTH * len(panels), HEIGHT + 34  # 34 pixels for the legend
  legend, x = [], LEFT
  for label, colour in zip(labels, COLOURS):
    legend.append(f'<rect x="{x}" y="12" width="14" height="14" fill="{colour}"/>')
    legend.append(_text(x + 20, 24, label, anchor="start", size=14))
    x += 50 + 8 * len(label)  # about 8 pixels per character
  body = "\n".join(panel(WIDTH * i) for i, panel in enumerate(panels))
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
    f' height="{height}" font-family="sans-serif">\n<rect width="100%" height="100%"'
    f' fill="white"/>\n{"".join(legend)}\n<g transform="translate(0 34)">\n{body}\n</g>\n</svg>\n'
  )


def histogram(title: str, values: Mapping[str, Sequence[float]]) -> Panel:
  """Returns a panel with shares by length: an outline per label, a dashed line at its median.

  The axis ends at the 99th percentile; larger values count in the last bin.
  """
  everything = np.concatenate(list(values.values())).astype(float)
  largest = np.percentile(everything, 99)
  step = _nice(max(1.0, largest) / BINS)
  bins = max(1, math.ceil(largest / step + 1e-9))
  edges = step * np.arange(bins + 1)
  shares = []
  for lengths in values.values():
    # Values beyond the axis move into the middle of the last bin.
    clipped = np.clip(lengths, 0, edges[-1] - step / 2)
    shares.append(np.histogram(clipped, edges)[0] / len(lengths))
  top = max(map(max, shares)) * 1.05  # some space above the highest bin

  def draw(left: float) -> str:
    x, y = _axes(left, edges[-1], top)
    out = [*_frame(left, title), *_ticks_y(left, top, y)]
    for tick in np.arange(0, edges[-1] * 1.001, _nice(edges[-1] / 5)):
      out.append(_text(x(tick), HEIGHT - BOTTOM + 16, f"{tick:,.0f}"))
    out.append(_text(left + WIDTH / 2, HEIGHT - 8, "words (dashed: median)"))
    for lengths, share, colour in zip(values.values(), shares, COLOURS):
      out.append(_outline(x, y, edges, share, colour))
      middle = x(min(float(np.median(lengths)), edges[-1]))
      out.append(
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
        f' stroke="{colour}" stroke-width="1.5" stroke-dasharray="5 4"/>'
      )
    return "\n".join(out)

  return draw


def _outline(x, y, edges: np.ndarray, share: np.ndarray, colour: str) -> str:
  """Returns a histogram as one polygon: from the origin along the tops of the bins to the axis."""
  corners = [f"{x(0):.1f},{y(0):.1f}"]
  for low, high, value in zip(edges, edges[1:], share):
    corners.append(f"{x(low):.1f},{y(value):.1f}")
    corners.append(f"{x(high):.1f},{y(value):.1f}")
  corners.append(f"{x(edges[-1]):.1f},{y(0):.1f}")
  return (
    f'<polygon points="{" ".join(corners)}" fill="{colour}" fill-opacity="0.25"'
    f' stroke="{colour}" stroke-width="1.5"/>'
  )


def bars(title: str, shares: Mapping[str, Sequence[float]]) -> Panel:
  """Returns a panel with a group of bars per name, one bar per label; shares are in [0, 1]."""

  def draw(left: float) -> str:
    x, y = _axes(left, len(shares), 1.1)
    out = [*_frame(left, title), *_ticks_y(left, 1.0, y)]
    for i, (name, values) in enumerate(shares.items()):
      out.append(_text(x(i + 0.5), HEIGHT - BOTTOM + 16, name, size=10))
      # The bars take up 70 % of a group's width, with 15 % free on each side.
      share = 0.7 / len(values)
      width = x(share) - x(0)
      for j, (value, colour) in enumerate(zip(values, COLOURS)):
        begin, top = x(i + 0.15 + share * j), y(value)
        out.append(
          f'<rect x="{begin:.1f}" y="{top:.1f}" width="{width - 1:.1f}"'
          f' height="{y(0) - top:.1f}" fill="{colour}" fill-opacity="0.85"/>'
        )
        out.append(_text(begin + width / 2, top - 4, f"{100 * value:.0f}", size=9))
    return "\n".join(out)

  return draw


def _axes(left: float, end: float, top: float):
  """Returns (x, y), functions from data in [0, end] and [0, top] to pixels; SVG's y points down."""
  wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
  return (lambda v: left + LEFT + wide * v / end), (lambda v: HEIGHT - BOTTOM - high * v / top)


def _frame(left: float, title: str) -> list[str]:
  """Returns the title and the two axes of a panel."""
  base = HEIGHT - BOTTOM
  axis = f'<path d="M{left + LEFT} {TOP}V{base}H{left + WIDTH - RIGHT}" fill="none" stroke="#444"/>'
  return [_text(left + WIDTH / 2, 24, title, size=14), axis]


def _ticks_y(left: float, top: float, y) -> list[str]:
  """Returns the labels of the vertical axis, in percent."""
  step = _nice(top / 5)
  ticks = np.arange(0, top * 1.001, step)
  decimals = 0 if step >= 0.01 else 1
  return [_text(left + LEFT - 6, y(t) + 4, f"{t:.{decimals}%}", anchor="end") for t in ticks]


def _nice(step: float) -> float:
  """Returns the smallest of 1, 2, 5, 10, 20, ... (or 0.5, 0.2, ...) that is at least `step`."""
  scale = 10.0 ** math.floor(math.log10(step))
  for multiple in (1, 2, 5):
    if scale * multiple >= step * (1 - 1e-9):  # log10 may round a power of ten up or down
      return scale * multiple
  return scale * 10


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 11) -> str:
  """Returns a text element; `anchor` is the part of the text that is at x."""
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    f' fill="#222">{html.escape(text)}</text>'
  )
