"""The paper's Tables 1 to 3 in miniature: all rows on the built-in problems, with several seeds.

Called by launch/table_miniature.sh. A seed selects a base model and the random numbers of all
trainings from it; training and test problems are the same for all. Seed s starts from the base of
seed s + 1 of configs/miniature_base.py, so seed 0 has the shipped one. Every model is measured on
the 200 test problems in both modes, whole and stepwise.
"""

import json
import os
import pathlib
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from launch import stages
from srl_jax import command_line
from srl_jax.errors import UserError
from srl_jax.evals import miniature_table


class Arm(NamedTuple):
  """A row of the table.

  Fields: title; row, of configs/miniature_row.py ("": the base, untrained); after, the arm that it
  starts from, at its best checkpoint; close, whether its differences are small and need more seeds.
  """

  title: str
  row: str
  after: str = ""
  close: bool = False


ARMS = {
  "base": Arm("base model", "", close=True),
  "sft_reasoning": Arm("SFT (reasoning)", "sft_reasoning"),
  "sft_outline": Arm("SFT (outline)", "sft_outline"),
  "rlvr": Arm("RLVR", "rlvr"),
  "sft_rlvr": Arm("SFT (outline), then RLVR", "rlvr_after", after="sft_outline"),
  "one_step": Arm("one-step similarity", "one_step"),
  "srl": Arm("SRL", "srl", close=True),
  "srl_rlvr": Arm("SRL, then RLVR", "rlvr_after", after="srl", close=True),
  "srl_no_filter": Arm("SRL without dynamic sampling", "srl_no_filter", close=True),
  "srl_long": Arm("SRL for as long as SRL, then RLVR", "srl_long"),
}
QUICK_STEPS = 400  # of SRL; all other rows follow

flags = command_line.own_flags()
_WORKDIR = flags.DEFINE_string("workdir", "runs/miniature", "Folder of all runs.")
_QUICK = flags.DEFINE_bool("quick", False, f"Seed 0 alone, and {QUICK_STEPS} steps of SRL.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of every row.", 1)
_CLOSE_SEEDS = flags.DEFINE_integer(
  "close_seeds", 5, "Seeds of SRL, without filter, and with RLVR after it.", 1
)
_STEPS = flags.DEFINE_integer("steps", 0, "Of SRL, where the quickstart's are too many.", 0)
_PROBLEMS = flags.DEFINE_integer("problems", 200, "Test problems.", 1)
_JOBS = flags.DEFINE_integer("jobs", min(2, os.cpu_count() or 1), "Stages at a time.", 1)
_ARMS = flags.DEFINE_list("arms", list(ARMS), "Which rows.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands that would be started.")


def main(argv: list[str]) -> None:
  del argv
  unknown = set(_ARMS.value) - set(ARMS)
  if unknown:
    raise UserError(f"--arms: no {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
  if _QUICK.value and _STEPS.value:
    raise UserError("--quick has its own number of steps: give one of --quick and --steps")
  root = pathlib.Path(_WORKDIR.value)
  steps = QUICK_STEPS if _QUICK.value else _STEPS.value
  arms = {name: arm for name, arm in ARMS.items() if name in _ARMS.value}
  seeds = {name: range(_seeds(arm)) for name, arm in arms.items()}
  # Seed by seed, so that a table that is interrupted has some whole ones.
  order = [(name, s) for s in range(max(map(len, seeds.values()))) for name in arms]
  todo = {}
  for name, seed in order:
    if seed in seeds[name]:
      trained = trainings(name, seed, root, steps)
      for stage in [*trained, *evaluations(name, seed, root, trained)]:
        todo[stage.name] = stage
  if _DRY_RUN.value:
    for stage in todo.values():
      print(shlex.join(stage.command))
    return
  stages.run(list(todo.values()), root / "logs", _JOBS.value)
  measured = [
    miniature_table.Arm(
      name, arm.title, {s: _folders(name, s, root) for s in seeds[name]}, _chains(name, seeds, root)
    )
    for name, arm in arms.items()
  ]
  text, data = miniature_table.table(measured)
  (root / "table.txt").write_text(text + "\n", encoding="utf-8")
  (root / "table.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
  print(f"\n{text}\n\nalso in {root}/table.txt and table.json")


def _seeds(arm: Arm) -> int:
  """Number of seeds of a row."""
  if _QUICK.value:
    return 1
  return max(_SEEDS.value, _CLOSE_SEEDS.value if arm.close else 0)


def trainings(name: str, seed: int, root: pathlib.Path, steps: int) -> list[stages.Stage]:
  """The trainings that lead to an arm of a seed, its base's first; none for the shipped base."""
  arm, before = ARMS[name], []
  # A chain of dependent stages: the arm before or, for seeds above 0, a base of this seed.
  if arm.after:
    before = trainings(arm.after, seed, root, steps)
  elif seed:
    file = f"{stages.CONFIGS / 'miniature_base'}.py:seed={seed + 1}"
    before = [stages.training(f"made_base-{seed}", file, [], root)]
  if not arm.row:
    return before
  file = f"{stages.CONFIGS / 'miniature_row'}.py:row={arm.row},seed={seed}"
  file += f",steps={steps}" if steps else ""
  after = before[-1].name if before else ""
  return [*before, stages.training(f"{name}-{seed}", file, [], root, after)]


def evaluations(
  name: str, seed: int, root: pathlib.Path, trained: Sequence[stages.Stage]
) -> list[stages.Stage]:
  """One in each mode, with the limits of the trainings in that form."""
  after = trained[-1].name if trained else ""
  model = str(root / after) if trained else str(stages.CONFIGS / "miniature")
  made = []
  for mode, output in _folders(name, seed, root).items():
    # The limits of the rows that are trained in this mode, the same for all models.
    row = "srl" if mode == "stepwise" else "rlvr"
    config = stages.config_of(f"{stages.CONFIGS / 'miniature_row'}.py:row={row}")
    more = [f"--mode={mode}", "--style=think", f"--samples={config.eval.samples}"]
    more += [f"--max_tokens={config.eval.max_tokens}", f"--max_turns={config.eval.max_turns}"]
    more += [f"--max_prompt_tokens={config.data.max_prompt_tokens}", "--dtype=float32"]
    more += [f"--mesh={config.mesh}", f"--width={config.rollout.width}", f"--seed={seed}"]
    benchmarks = [f"arithmetic:{_PROBLEMS.value}"]
    made.append(stages.evaluation(f"{name}-{seed}.{mode}", model, output, benchmarks, more, after))
  return made


def _folders(name: str, seed: int, root: pathlib.Path) -> dict[str, pathlib.Path]:
  """{mode: output folder of its evaluation}."""
  return {mode: root / "evals" / f"{name}-{seed}" / mode for mode in ("whole", "stepwise")}


def _chains(name: str, seeds, root: pathlib.Path) -> list[list[pathlib.Path]]:
  """For each seed the workdirs that an arm's training took, without the base's."""
  names = []
  while name and ARMS[name].row:
    names.append(name)
    name = ARMS[name].after
  return [[root / f"{arm}-{seed}" for arm in names] for seed in (seeds[names[0]] if names else ())]


if __name__ == "__main__":
  command_line.run(main, flags.values)
