"""Figures -> one page of Markdown."""

import datetime
import statistics

from benchmarks.machine import cores_and_memory
from benchmarks.peers.worker import PeerError


def page(parts: list, *, command: str, minutes: float) -> str:
  """The whole page.

  Args:
    parts: (title, order, found, versions) of each measurement; found is {name: its answers, or the
      PeerError}, versions is {name: {package: version}}.
    minutes: duration of the run.
  """
  lines = [
    "# Beside other projects",
    "",
    f"Written by `{command}` on {datetime.date.today()} in {minutes:.0f} minutes: do not edit.",
    "float32, warm; seconds are medians, then each round; peers take turns (A B A B). A",
    "ratio is the peer's median over ours: above 1 ours is faster.",
    "",
    f"{cores_and_memory()}.",
  ]
  packages = {}
  for case, order, found, versions in parts:
    sizes = ", ".join(f"{key} {value}" for key, value in order.items() if key != "model")
    lines += ["", f"## {case}: {sizes}", "", *rows(order, found)]
    for name, of_name in versions.items():
      # "ours, prompt shared" and "ours, sharing off" have one environment.
      packages.setdefault(name.partition(",")[0], {}).update(of_name)
  lines += ["", "## Versions", ""]
  for name, of_name in packages.items():
    lines.append(f"- {name}: " + ", ".join(f"{p} {v}" for p, v in of_name.items()))
  return "\n".join(lines) + "\n"


def rows(order: dict, found: dict) -> list[str]:
  """The lines of one table: a peer each."""
  ours = [name for name in found if name.startswith("ours")]
  unit, amount = _amount(order)
  head = ["who", "seconds (each round)", unit, *(f"{name}: faster by" for name in ours)]
  lines = [[*head, "gradient norm"], ["---"] * (len(head) + 1)]
  for name, answers in found.items():
    if isinstance(answers, PeerError):
      lines.append([name, f"failed: {answers}"] + [""] * (len(head) - 1))
      continue
    median = _median(answers)
    parts = answers[0].get("micro_batches", 1)
    each = ", ".join(f"{answer['seconds']:.3g}" for answer in answers)
    cells = [f"{name} (in {parts} micro-batches)" if parts > 1 else name]
    cells += [f"{median:.3g} ({each})", f"{amount / median:,.0f}"]
    for way in ours:
      other = not name.startswith("ours") and not isinstance(found[way], PeerError)
      cells.append(f"{median / _median(found[way]):.2f}" if other else "")
    # The same weights, tokens and loss give the same gradient: all did the same work.
    norm = answers[0].get("grad_norm")
    lines.append([*cells, "" if norm is None else f"{norm:.4f}"])
  return ["| " + " | ".join(cells) + " |" for cells in lines]


def _amount(order: dict) -> tuple[str, int]:
  """(Unit of the rate, amount of one round in it)."""
  if "pairs" in order:
    return "pairs/s", order["pairs"]
  if "prompts" in order:
    return "sampled tokens/s", order["prompts"] * order["samples"] * order["response"]
  # Counted alike for all: every response with its own prompt.
  return "tokens/s", order["samples"] * (order["prompt"] + order["response"])


def _median(answers: list[dict]) -> float:
  return statistics.median(answer["seconds"] for answer in answers)
