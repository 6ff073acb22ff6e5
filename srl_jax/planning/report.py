"""A plan as text: the page that the command prints and a row of the table."""

import argparse
import json
import pathlib

from srl_jax.planning.topologies import GIB, TOPOLOGIES

HEADER = """\
| topology | devices | mesh | tokens a micro-batch | weights + moments | gradients \
| largest program | temporaries | peak of limit | step, forecast | MFU, forecast | |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def text(report: dict) -> str:
  """The page of a plan."""
  memory, rates = report["memory"], report["rates"]
  shape = " x ".join(map(str, report["rows_shape"]))
  lines = [
    f"{report['model']} on {report['topology']}: {report['devices']} x {report['chip']}, "
    f"mesh {report['mesh']}, rollout.engine {report['engine']}",
    "",
    "memory of a device, GiB",
    f"  {_gib(memory['parameters'])}  weights",
    f"  {_gib(memory['moments'])}  moments",
    f"  {_gib(memory['gradients'])}  gradients, of all micro-batches together",
  ]
  if memory["sampler"]:
    lines.append(
      f"  {_gib(memory['sampler'])}  sampler's copy of the weights; what is trained of them twice "
      'while it loads (its KV caches are in the row "sample")'
    )
  lines += [
    f"  programs, micro-batches of {shape} tokens:",
    "                arguments  temporaries  resident besides     peak",
  ]
  for name, part in memory["programs"].items():
    lines.append(
      f"    {name:<12}{_gib(part['arguments'], 9)}{_gib(part['temporaries'], 13)}"
      f"{_gib(part['resident'], 18)}{_gib(part['total'], 9)}"
    )
  lines.append(f"  {_gib(memory['peak'])}  the most, of {memory['limit'] / GIB:.2f}")
  if report["step"]:
    lines += ["", *_forecast(report)]
  lines += ["", "forecasts assume, per device: " + _rates(rates)]
  lines += ["", "verdict: " + verdict(report)]
  return "\n".join(lines)


def verdict(report: dict) -> str:
  """Whether it fits, or what to change."""
  memory = report["memory"]
  figures = f"{memory['peak'] / GIB:.1f} of {memory['limit'] / GIB:.1f} GiB a device"
  if memory["fits"]:
    return f"fits, {figures}"
  change = "\n".join(f"  {line}" for line in report["change"])
  return f"does not fit: {figures}. Change, one after the other:\n{change}"


def row(report: dict) -> str:
  """A line of the Markdown table under HEADER."""
  memory, step = report["memory"], report["step"]
  # The program that determines the peak.
  largest = max(memory["programs"], key=lambda name: memory["programs"][name]["total"])
  cells = [
    report["topology"],
    str(report["devices"]),
    report["mesh"],
    " x ".join(map(str, report["rows_shape"])),
    f"{(memory['parameters'] + memory['moments']) / GIB:.1f}",
    f"{memory['gradients'] / GIB:.1f}",
    largest,
    f"{memory['programs'][largest]['temporaries'] / GIB:.1f}",
    f"{memory['peak'] / GIB:.1f} of {memory['limit'] / GIB:.1f} GiB",
    f"{step['step_s']:.0f} s" if step else "",
    f"{step['mfu']:.0%}" if step else "",
    "fits" if memory["fits"] else "refused",
  ]
  return f"| {' | '.join(cells)} |"


def _forecast(report) -> list[str]:
  step, work = report["step"], report["work"]
  # Of all tokens computed, the padding of the last micro-batch included.
  share = step["tokens"] / (step["micro_batches"] * step["tokens_in_flight"])
  lines = [
    f"forecast of an update: {step['tokens']:,} tokens (prompts of {work['prompt_tokens']}, each "
    f"once; responses of {work['response_tokens']})",
    f"  {step['micro_batches']} micro-batches with {step['tokens_in_flight']:,} tokens in flight, "
    f"{share:.0%} of them real",
    f"  {step['flops']:.3g} FLOPs by formula",
    f"  {step['compute_s']:.1f} s of compute, beside {step['link_s']:.1f} s of collectives",
    f"  {step['apply_s']:.2f} s for the optimiser, {step['score_s']:.1f} s for further log-probs",
    f"  {step['step_s']:.1f} s in all: MFU {step['mfu']:.1%}",
  ]
  return lines


def _rates(rates) -> str:
  return (
    f"{rates['compute'] / 1e12:.0f} of {rates['peak'] / 1e12:.0f} TFLOP/s, "
    f"{rates['memory'] / 1e9:.0f} GB/s of memory, {rates['link'] / 1e9:.0f} GB/s over links, "
    f"{rates['packed']:.0%} real tokens among the packed ones"
  )


def _gib(value: float, width: int = 8) -> str:
  return f"{value / GIB:>{width}.2f}"


def table(reports: list[dict]) -> str:
  """Plans of one config as a Markdown table, with what they assume."""
  work = reports[0]["work"]
  lines = [HEADER, *map(row, reports), ""]
  lines.append(
    f"{reports[0]['model']}, rollout.engine {reports[0]['engine']}; memory in GiB a device; step "
    f"and MFU are forecasts for prompts of {work['prompt_tokens']} and responses of "
    f"{work['response_tokens']} tokens. Assumed rates:"
  )
  lines += [f"- {report['topology']}: {_rates(report['rates'])}" for report in reports]
  for report in reports:
    if report["change"]:
      lines += ["", f"{report['topology']} {verdict(report)}"]
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description="Prints the table of plans (srl_jax.plan --json).")
  parser.add_argument("plans", nargs="+", type=pathlib.Path, help="JSON files")
  given = parser.parse_args()
  order = list(TOPOLOGIES)
  reports = [json.loads(file.read_text()) for file in given.plans]
  reports.sort(key=lambda report: order.index(report["topology"]))
  print(table(reports))


if __name__ == "__main__":
  main()
