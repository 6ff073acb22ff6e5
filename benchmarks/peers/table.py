"""Figures -> one page of Markdown."""

import datetime
import os
import statistics

from benchmarks.peers import cpu
from benchmarks.peers.worker import PeerError

# (case, our way, peer): how many times as fast as the peer ours is to be.
GOALS = {
  ("update", "ours, prompt shared", "TRL"): 2.0,
  ("update", "ours, prompt shared", "tunix"): 3.0,
  ("update", "ours, sharing off", "TRL"): 0.8,
  ("update", "ours, sharing off", "tunix"): 1.5,
  ("sample", "ours", "tunix"): 1.5,
  ("sample", "ours", "vLLM"): 1.0,
  ("reward", "ours", "standard library"): 15.0,
}
MOST_SECONDS = {("reward", "ours, 2 processes"): 15.0}
TITLES = {"update": "One update", "sample": "Sampling", "reward": "Rewards"}


def page(parts: list, *, command: str, minutes: float) -> str:
  """The whole page.

  Args:
    parts: (case, order, found, versions) of each measurement; found is {name: its answers, or the
      PeerError}, versions is {name: {package: version}}.
    minutes: what the run took.
  """
  lines = [
    "# Beside other projects",
    "",
    f"Written by `{command}` on {datetime.date.today()} in {minutes:.0f} minutes:",
    "do not edit. float32, warm; seconds are medians, each round behind them, taken in turn (A B",
    "A B). A ratio is the peer's median over ours: above 1 ours is faster. CPU s is what a round",
    "took of all cores together.",
    "",
    f"{machine()}. Other work took {_others(parts):.0%} of it during the rounds"
    " (a few per cent is a quiet machine; with more, compare CPU s).",
  ]
  for case, order, found, _ in parts:
    lines += ["", f"## {TITLES[case]}: {describe(case, order)}", "", *rows(case, order, found)]
  lines += ["", "## Versions", ""]
  together = {}
  for *_, of_name in parts:
    for name, packages in of_name.items():
      together.setdefault(name.partition(",")[0], {}).update(packages)
  for name, packages in together.items():
    lines.append(f"- {name}: " + ", ".join(f"{p} {v}" for p, v in packages.items()))
  return "\n".join(lines) + "\n"


def describe(case: str, order: dict) -> str:
  """What a measurement was, in a line."""
  if case == "reward":
    return f"{order['pairs']:,} pairs of {order['characters']:,} characters"
  sizes = f"{order['prompt']} tokens of prompt, {order['response']} of response"
  if case == "update":
    remat = "on" if order["remat"] else "off"
    return (
      f"{order['shape']}, {order['samples']} responses, {sizes}, gradient checkpointing {remat}"
    )
  count = order["prompts"] * order["samples"]
  return f"{order['shape']}, {count} sequences, {order['samples']} a prompt, {sizes}"


def rows(case: str, order: dict, found: dict) -> list[str]:
  """The lines of one table: a peer each."""
  ours = [name for name in found if name.startswith("ours")]
  unit, amount = _amount(case, order)
  head = ["who", "seconds (each round)", "CPU s", unit]
  head += [f"{name}: faster by" for name in ours if len(found) > len(ours)]
  head += ["gradient norm"] if case == "update" else []
  lines = [head, ["---"] * len(head)]
  for name, answers in found.items():
    if isinstance(answers, PeerError):
      why = str(answers).partition(";")[0]  # not the name of its log
      lines.append([name, f"failed: {why}"] + [""] * (len(head) - 2))
      continue
    median = _median(answers)
    notes = " (alone: it failed beside the others)" if answers[0].get("alone") else ""
    if (parts := answers[0].get("micro_batches", 1)) > 1:
      notes += f" (in {parts} micro-batches)"
    cells = [name + notes, _seconds(case, name, answers), f"{_median(answers, 'cpu'):.3g}"]
    cells += [f"{amount / median:,.0f}"]
    cells += [_ratio(case, way, name, found) for way in ours if len(found) > len(ours)]
    # The same weights, tokens and loss give the same gradient: all did the same work.
    cells += [f"{answers[0]['grad_norm']:.4f}"] if case == "update" else []
    lines.append(cells)
  return ["| " + " | ".join(cells) + " |" for cells in lines]


def _amount(case, order):
  """(name of the rate, what a round is made of)."""
  if case == "reward":
    return "pairs/s", order["pairs"]
  if case == "update":  # counted alike for all: every response with its own prompt
    return "tokens/s", order["samples"] * (order["prompt"] + order["response"])
  return "sampled tokens/s", order["prompts"] * order["samples"] * order["response"]


def _seconds(case, name, answers):
  median = _median(answers)
  each = ", ".join(f"{answer['seconds']:.3g}" for answer in answers)
  text = f"{median:.3g} ({each})"
  most = MOST_SECONDS.get((case, name))
  return text if most is None else f"{text}; goal <= {most:g}: {_met(median <= most)}"


def _ratio(case, way, name, found):
  if name.startswith("ours") or isinstance(found[way], PeerError):
    return ""
  ratio = _median(found[name]) / _median(found[way])
  goal = GOALS.get((case, way, name))
  return f"{ratio:.2f}" if goal is None else f"{ratio:.2f} (goal {goal:g}: {_met(ratio >= goal)})"


def _met(yes: bool) -> str:
  return "met" if yes else "missed"


def _median(answers, figure="seconds"):
  return statistics.median(answer[figure] for answer in answers)


def _others(parts) -> float:
  """The share of the machine that other work had while rounds ran."""
  answers = [
    answer
    for _, _, found, _ in parts
    for of_peer in found.values()
    if not isinstance(of_peer, PeerError)
    for answer in of_peer
  ]
  wall = sum(answer["wall"] for answer in answers)
  return sum(answer["others"] for answer in answers) / max(wall, 1e-9) / os.cpu_count()


def machine() -> str:
  """The machine, in a few words."""
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
  return f"{os.cpu_count()} cores of {cpu.model_name()}, {memory:.0f} GiB"
