"""The results as Markdown."""

import statistics

from srl_jax.learner.update import PEAKS


def table(results: dict) -> str:
  """The results as Markdown."""
  info, found = results["machine"], results["sections"]
  peak = next((value for name, value in PEAKS.items() if name in info["device"]), None)
  versions = ", ".join(f"{name} {version or 'none'}" for name, version in info["versions"].items())
  command = "python -m benchmarks.gpu" + " --tiny" * results["tiny"]
  lines = [
    f"{info['device']}, driver {info['driver'] or 'none'}, {versions}, {results['date']}; "
    f'`{command}`. MFU counts a prompt once for its group, "copied" once for every '
    "response. Memory in GiB: the peak in use, the estimate of `plan` for the compiled programs, "
    "and their ratio.",
    "",
    "| section | seconds | TFLOP/s | MFU | copied | tokens/s computed | in sequences | measured "
    "| estimated | ratio |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for name, x in found.items():
    if "error" in x:
      last = x["error"].strip().splitlines()[-1][:80].replace("|", "/")
      lines.append(f"| {name} | failed: {last} |")
    else:
      lines.append(_line(name + " (not compiled)" * (x.get("compiled") is False), x, peak))
      if "score_seconds" in x:
        scored = {key.removeprefix("score_"): x[key] for key in x if key.startswith("score_")}
        lines.append(_line(f"log-probs of {name}", scored, peak))
  lines += ["", *_ratios(found), *_kinds(found)]
  return "\n".join(lines) + "\n"


def _line(name: str, x: dict, peak: float | None) -> str:
  """A line of the table; peak: the device's FLOP/s, if known."""
  cell = lambda value, form: "" if value is None else format(value, form)
  second = x["seconds"] if isinstance(x["seconds"], float) else statistics.median(x["seconds"])
  tflops, measured, estimated = map(x.get, ("tflops", "peak_bytes", "estimated_bytes"))
  share = lambda rate: rate * 1e12 / peak if rate and peak else None
  cells = [name, cell(second, ".4g"), cell(tflops, ".1f"), cell(share(tflops), ".1%")]
  cells.append(cell(share(x.get("copied_tflops")), ".1%"))
  cells += [cell(x.get(key), ",.0f") for key in ("tokens_per_second", "sequence_tokens_per_second")]
  cells += [cell(value and value / 2**30, ".1f") for value in (measured, estimated)]
  cells += [cell(measured / estimated if measured and estimated else None, ".2f")]
  return f"| {' | '.join(cells)} |"


def _kinds(found: dict) -> list[str]:
  """A table of the milliseconds of each kind of kernel in an update, a column for each section."""
  columns = {name: x["kinds"] for name, x in found.items() if x.get("kinds")}
  if not columns:
    return []
  kinds = list(dict.fromkeys(kind for column in columns.values() for kind in column))
  lines = ["", f"| kernels, ms | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
  for kind in kinds:
    cells = (f"{1000 * column.get(kind, 0):.0f}" for column in columns.values())
    lines.append(f"| {kind} | {' | '.join(cells)} |")
  return lines


def _ratios(found: dict) -> list[str]:
  """Ratios of sections that did the same work."""
  speed = lambda name: found.get(name, {}).get("sequence_tokens_per_second")
  lines = []

  def compare(name, other, what):  # sections that failed or were not run are left out
    if speed(name) and speed(other):
      lines.append(f"- {name}: {speed(name) / speed(other):.2f} x {what}")

  for name in found:
    if name.endswith(" shared"):
      compare(name, name.replace(" shared", " naive"), "the update without sharing")
    if name.startswith("update_7b_"):
      case = " ".join(name.split()[1:3])  # without the size of a chunk
      compare(name, f"update_7b {case}", "the update by default")
    if name.startswith("torch"):
      case = name.split()[1]
      for ours in ("update_7b {} naive", "update_7b {} shared", "update_7b_matmuls {} shared"):
        compare(ours.format(case), name, "torch")
  return lines
