"""The paper's Tables 1 to 3 in miniature: all rows on the built-in problems, with several seeds.

Called by launch/table_miniature.sh. A seed selects a base model and the random numbers of all
trainings from it; training and test problems are the same for all. Seed s starts from the base of
seed s + 1 of configs/miniature_base.py, so seed 0 has the shipped one. Every model is measured on
the 200 test problems in both modes, whole and stepwise.
"""

import json
import pathlib

from launch import stages
from srl_jax import command_line
from srl_jax.evals import miniature_table

# Rows of the table: title, row of configs/miniature_row.py ("": the base, untrained), and the arm
# that it starts from, at its best checkpoint.
ARMS = {
  "base": ("base model", "", ""),
  "sft_reasoning": ("SFT (reasoning)", "sft_reasoning", ""),
  "sft_outline": ("SFT (outline)", "sft_outline", ""),
  "rlvr": ("RLVR", "rlvr", ""),
  "sft_rlvr": ("SFT (outline), then RLVR", "rlvr_after", "sft_outline"),
  "one_step": ("one-step similarity", "one_step", ""),
  "srl": ("SRL", "srl", ""),
  "srl_rlvr": ("SRL, then RLVR", "rlvr_after", "srl"),
  "srl_no_filter": ("SRL without dynamic sampling", "srl_no_filter", ""),
  "srl_long": ("SRL for as long as SRL, then RLVR", "srl_long", ""),
  "srl_words": ("SRL, similarity of words", "srl_words", ""),
  "srl_edit": ("SRL, edit distance", "srl_edit", ""),
  "srl_chrf": ("SRL, chrF", "srl_chrf", ""),
}
SIMILARITIES = ("srl_words", "srl_edit", "srl_chrf")  # only --arms adds these rows
# Their small differences need more seeds.
CLOSE = ("base", "srl", "srl_rlvr", "srl_no_filter", *SIMILARITIES)
MODES = {"stepwise": "srl", "whole": "rlvr"}  # and a row that is trained in this mode

flags = command_line.own_flags()
_WORKDIR = flags.DEFINE_string("workdir", "runs/miniature", "Folder of all runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of every row.", 1)
_CLOSE_SEEDS = flags.DEFINE_integer("close_seeds", 5, f"Seeds of {', '.join(CLOSE)}.", 1)
_STEPS = flags.DEFINE_integer("steps", 0, "Of SRL, where the quickstart's are too many.", 0)
_ARMS = flags.DEFINE_list("arms", [x for x in ARMS if x not in SIMILARITIES], "Which rows.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands that would be started.")


def main(argv: list[str]) -> None:
  del argv
  names, root = stages.chosen(_ARMS.value, list(ARMS)), pathlib.Path(_WORKDIR.value)
  seeds = {name: range(_CLOSE_SEEDS.value if name in CLOSE else _SEEDS.value) for name in names}
  todo = {}
  # Seed by seed, so that a table that is interrupted has some whole ones.
  for seed in range(max(map(len, seeds.values()))):
    for name in [name for name in names if seed in seeds[name]]:
      todo |= trainings(name, seed, root) | evaluations(name, seed, root)
  stages.run(todo, _DRY_RUN.value)
  measured = []
  for name in names:
    outputs = {s: {mode: _output(name, s, mode, root) for mode in MODES} for s in seeds[name]}
    # The trainings of the arm itself, without the base's.
    title, row, _ = ARMS[name]
    runs = [list(_chain(name, s, root)) for s in seeds[name]] if row else []
    measured.append(miniature_table.Arm(name, title, outputs, runs))
  text, data = miniature_table.table(measured)
  (root / "table.txt").write_text(text + "\n", encoding="utf-8")
  (root / "table.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
  print(f"\n{text}\n\nalso in {root}/table.txt and table.json")


def _chain(name: str, seed: int, root: pathlib.Path) -> dict[pathlib.Path, str]:
  """{workdir: row} of an arm's trainings, the last one first."""
  _, row, after = ARMS[name]
  return {root / f"{name}-{seed}": row} | (_chain(after, seed, root) if after else {})


def _base(seed: int, root: pathlib.Path) -> pathlib.Path:
  return root / f"made_base-{seed}" if seed else stages.CONFIGS / "miniature"


def trainings(name: str, seed: int, root: pathlib.Path) -> stages.Commands:
  """The trainings that lead to an arm of a seed, its base's first; none for the shipped base."""
  start, made = "", {}
  if seed:
    start = _base(seed, root)
    made = stages.train(f"{stages.CONFIGS / 'miniature_base'}.py:seed={seed + 1}", start)
  for workdir, row in reversed(_chain(name, seed, root).items()):
    if row:
      file = f"{stages.CONFIGS / 'miniature_row'}.py:row={row},seed={seed}"
      file += f",steps={_STEPS.value}" if _STEPS.value else ""
      made |= stages.train(file, workdir, start=start)
      start = workdir
  return made


def evaluations(name: str, seed: int, root: pathlib.Path) -> stages.Commands:
  """One in each mode, with the limits of the trainings in that form, the same for all models."""
  made, model = {}, root / f"{name}-{seed}" if ARMS[name][1] else _base(seed, root)
  for mode, row in MODES.items():
    config = stages.config_of(f"{stages.CONFIGS / 'miniature_row'}.py:row={row}")
    more = [f"--mode={mode}", "--style=think", f"--samples={config.eval.samples}"]
    more += [f"--max_tokens={config.eval.max_tokens}", f"--max_turns={config.eval.max_turns}"]
    more += [f"--max_prompt_tokens={config.data.max_prompt_tokens}", "--dtype=float32"]
    more += [f"--mesh={config.mesh}", f"--width={config.rollout.width}", f"--seed={seed}"]
    made |= stages.evaluate(model, _output(name, seed, mode, root), ["arithmetic:200"], more)
  return made


def _output(name: str, seed: int, mode: str, root: pathlib.Path) -> pathlib.Path:
  return root / "evals" / f"{name}-{seed}" / mode


if __name__ == "__main__":
  command_line.run(main, flags.values)
