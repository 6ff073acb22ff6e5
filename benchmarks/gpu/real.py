"""A real run on the card: how long it takes, what compiles, whether the reward rises.

FOLDER has `model`, a Hugging Face folder, and `data.jsonl`, worked solutions with numbered steps in
the columns problem, solution and answer. The run is configs/one_card.py with STEPS steps; its files
are in FOLDER/run, which must not exist.
"""

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

STEPS = 30
SETTLED = 3  # steps from here on compile nothing
ENDS = 5  # steps at the beginning and at the end that are compared


def measure(folder: pathlib.Path, tiny: bool, more: Sequence[str]) -> str:
  """Trains and returns a page of Markdown.

  Args:
    folder: see above.
    tiny: 3 steps of the size for a CPU.
    more: further flags of srl_jax.train, such as --config.rollout.width=512.
  """
  columns = "problem=problem,solution=solution,answer=answer"
  config = f"configs/one_card.py:model={folder}/model,data={folder}/data.jsonl,{columns}"
  command = [sys.executable, "-m", "srl_jax.train", f"--workdir={folder}/run"]
  if tiny:
    command.append(f"--config={config},tiny")
  else:
    command += [f"--config={config}", f"--config.train.steps={STEPS}"]
  begin = time.monotonic()
  done = subprocess.run([*command, *more])
  seconds = time.monotonic() - begin
  if done.returncode:
    sys.exit(f"the run ended with exit code {done.returncode}")
  text = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
  return page(list(map(json.loads, text.splitlines())), seconds)


def page(rows: Sequence[dict], seconds: float) -> str:
  """Returns the figures of a run as Markdown.

  Args:
    rows: of metrics.jsonl.
    seconds: from the start of the process to its end.
  """
  steps = [row for row in rows if row["step"] > 0]
  compiling = sum(row["seconds_compile"] for row in rows)
  programs = sum(int(row["programs_compiled"]) for row in rows)
  late = sum(int(row["programs_compiled"]) for row in rows if row["step"] >= SETTLED)
  lines = [
    f"{len(steps)} steps in {seconds:.0f} s, of which programs compiled for {compiling:.0f} s (side"
    f" by side, so their sum may be longer); {programs} programs, {late} of them from step"
    f" {SETTLED} on.",
    "",
    "| | first steps | last steps |",
    "|---|---|---|",
  ]
  for key in ("reward_mean", "reward_formed_mean", "format_failures", "logprob_gap_exp"):
    ends = [[row[key] for row in part if key in row] for part in (steps[:ENDS], steps[-ENDS:])]
    lines.append(f"| {key} | " + " | ".join(f"{np.mean(e):.4f}" if e else "-" for e in ends) + " |")
  lines += ["", "| median of a step | |", "|---|---|"]
  settled = steps[SETTLED - 1 :]
  for key in (
    "seconds_sample",
    "seconds_update",
    "seconds_sync",
    "tokens_per_second",
    "mfu_update",
  ):
    values = [row[key] for row in settled if key in row]
    if values:
      lines.append(f"| {key} | {np.median(values):,.3f} |")
  return "\n".join(lines) + "\n"
