"""Figures -> one page of Markdown."""

import datetime
import statistics

from benchmarks.machine import cores_and_memory

HEAD = """\
# Beside other projects

Written by `{command}` on {date} in {minutes:.0f} minutes: do not edit.
float32, warm; seconds are medians, then each round; peers take turns (A B A B). A
ratio is the peer's median over ours: above 1 ours is faster.

{machine}.
"""


def page(parts: list, *, versions: dict[str, list[str]], command: str, minutes: float) -> str:
  """The whole page.

  Args:
    parts: (order, found) of each measurement; found is {name: the answers, or why it failed}.
    versions: {environment: packages}.
    minutes: duration of the run.
  """
  lines = [
    HEAD.format(
      command=command, date=datetime.date.today(), minutes=minutes, machine=cores_and_memory()
    )
  ]
  for order, found in parts:
    sizes = [f"{key} {value}" for key, value in order.items() if key not in ("case", "model")]
    lines += [f"## {order['case']}: {', '.join(sizes)}", "", *rows(order, found), ""]
  lines += ["## Versions", ""]
  lines += [f"- {name}: {', '.join(packages)}" for name, packages in versions.items()]
  return "\n".join(lines) + "\n"


def rows(order: dict, found: dict[str, list[dict] | str]) -> list[str]:
  """The lines of one table: a peer each."""
  medians = {
    name: statistics.median(answer["seconds"] for answer in answers)
    for name, answers in found.items()
    if not isinstance(answers, str)
  }
  ours = [name for name in found if name.startswith("ours")]
  unit, amount = _amount(order)
  head = ["who", "seconds (each round)", unit, *(f"{name}: faster by" for name in ours)]
  lines = [[*head, "gradient norm"], ["---"] * (len(head) + 1)]
  for name, answers in found.items():
    if name not in medians:
      lines.append([name, f"failed: {answers}".replace("|", "/")] + [""] * (len(head) - 1))
      continue
    each = ", ".join(f"{answer['seconds']:.3g}" for answer in answers)
    cells = [name, f"{medians[name]:.3g} ({each})", f"{amount / medians[name]:,.0f}"]
    for way in ours:
      other = name not in ours and way in medians
      cells.append(f"{medians[name] / medians[way]:.2f}" if other else "")
    # The same weights, tokens and loss give the same gradient: all did the same work.
    norm = answers[0].get("grad_norm")
    lines.append([*cells, "" if norm is None else f"{norm:.4f}"])
  return ["| " + " | ".join(cells) + " |" for cells in lines]


def _amount(order: dict) -> tuple[str, int]:
  """(Unit of the rate, amount of one round in it)."""
  if order["case"] == "reward":
    return "pairs/s", order["pairs"]
  if order["case"] == "sample":
    return "sampled tokens/s", order["prompts"] * order["samples"] * order["response"]
  # Counted alike for all: every response with its own prompt.
  return "tokens/s", order["samples"] * (order["prompt"] + order["response"])
