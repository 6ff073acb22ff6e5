"""Figures -> one page of Markdown."""

import datetime
import statistics

from benchmarks.machine import cores_and_memory
from benchmarks.peers.environments import PACKAGES

HEAD = """\
# Beside other projects

Written by `{command}` on {date}: do not edit.
float32, warm; seconds are medians, then each round; peers take turns (A B A B). A
ratio is the peer's median over ours: above 1 ours is faster.

{machine}.
"""


def page(parts: list, command: str) -> str:
  """The whole page.

  Args:
    parts: (order, found) of each measurement; found is {name: its answers}.
    command: that made it.
  """
  lines = [HEAD.format(command=command, date=datetime.date.today(), machine=cores_and_memory())]
  for order, found in parts:
    sizes = [f"{key} {value}" for key, value in order.items() if key not in ("case", "model")]
    lines += [f"## {order['case']}: {', '.join(sizes)}", "", *rows(order, found), ""]
  lines += ["## Versions", ""]
  lines += [f"- {name}: {', '.join(packages)}" for name, packages in PACKAGES.items()]
  return "\n".join(lines) + "\n"


def rows(order: dict, found: dict[str, list[dict]]) -> list[str]:
  """The lines of one table: a peer each."""
  tokens = order["samples"] * order["response"] * order["prompts"]  # sampled
  if order["case"] == "update":  # counted alike for all: every response with its own prompt
    tokens = order["samples"] * (order["prompt"] + order["response"])
  medians = {
    name: statistics.median(answer["seconds"] for answer in answers)
    for name, answers in found.items()
  }
  ours = [name for name in medians if name.startswith("ours")]
  head = ["who", "seconds (each round)", "tokens/s", *(f"{name}: faster by" for name in ours)]
  lines = [[*head, "gradient norm"], ["---"] * (len(head) + 1)]
  for name, answers in found.items():
    each = ", ".join(f"{answer['seconds']:.3g}" for answer in answers)
    ratios = ["" if name in ours else f"{medians[name] / medians[way]:.2f}" for way in ours]
    # The same weights, tokens and loss give the same gradient: all did the same work.
    norm = f"{answers[0]['grad_norm']:.4f}" if "grad_norm" in answers[0] else ""
    cells = [name, f"{medians[name]:.3g} ({each})", f"{tokens / medians[name]:,.0f}"]
    lines.append([*cells, *ratios, norm])
  return ["| " + " | ".join(cells) + " |" for cells in lines]
