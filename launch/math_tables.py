"""Tables 1 to 3 of the paper: trains and evaluates their rows. launch/table1.sh and so on call it.

A finished training (summary.json) or evaluation (table.json) is not repeated, and the tables share
a folder, so SRL, say, is trained once for all three.
"""

import functools
import pathlib
import sys
from typing import NamedTuple

from launch import stages
from srl_jax import command_line
from srl_jax.errors import UserError
from srl_jax.evals import paper


class Row(NamedTuple):
  """A row: its config (the name of its figures in paper.PAPER, and of its folder), title, and the
  row whose best checkpoint it starts from.
  """

  config: str
  title: str
  after: str = ""


BASE, S1K_7B = "base", "s1k_7b"  # rows that are evaluated as they are
ROWS = {
  row.config: row
  for row in (
    Row(BASE, "base model"),
    Row(S1K_7B, "S1K-7B"),
    Row("sft_reasoning", "SFT (R1 reasoning)"),
    Row("sft_outline", "SFT (R1 outline)"),
    Row("rlvr_math", "RL(VR)"),
    Row("sft_rlvr_math", "SFT (outline), then RL(VR)", after="sft_outline"),
    Row("srl_math", "SRL"),
    Row("srl_rlvr_math", "SRL, then RLVR", after="srl_math"),
    Row("srl_math_no_filter", "SRL without dynamic sampling"),
    Row("one_step_math", "one-step similarity"),
  )
}
TABLES = {
  "1": [BASE, S1K_7B, "sft_reasoning", "sft_outline", "rlvr_math", "sft_rlvr_math", "srl_math"]
  + ["srl_rlvr_math"],
  "2": ["srl_math_no_filter", "srl_math"],
  "3": ["rlvr_math", "one_step_math", "srl_math"],
}
S1K_MODEL = "simplescaling/s1.1-7B"

flags = command_line.own_flags()
_TABLE = flags.DEFINE_enum("table", None, list(TABLES), "Which table.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs", "Folder of the rows' workdirs.")
_ROWS = flags.DEFINE_list("rows", [], f"Some of the table's: {', '.join(ROWS)}.")
_SAMPLES = flags.DEFINE_integer("samples", 32, "k of avg@k.", 1)
_SAMPLED = flags.DEFINE_list("sampled", ["amc23", "aime24", "aime25"], "Greedy and avg@k.")
_GREEDY = flags.DEFINE_list("greedy", ["minerva_math"], "Benchmarks by greedy decoding alone.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands that would be started.")


class Passed(NamedTuple):
  """What is passed on: arguments of every config, flags of every training and evaluation."""

  arguments: str
  train: list[str]
  evaluate: list[str]


def main(passed: Passed, argv: list[str]) -> None:
  del argv
  chosen = TABLES[_TABLE.value]
  unknown = set(_ROWS.value) - set(chosen)
  if unknown:
    raise UserError(
      f"--rows: table {_TABLE.value} has no {', '.join(sorted(unknown))}; it has"
      f" {', '.join(chosen)}"
    )
  rows = [ROWS[name] for name in chosen if name in (_ROWS.value or chosen)]
  root = pathlib.Path(_WORKDIR.value)
  todo = {stage.name: stage for row in rows for stage in stages_of(row, root, passed)}
  if _DRY_RUN.value:
    stages.show(list(todo.values()))
    return
  stages.run(list(todo.values()), root)
  found = [(row.config, row.title, _outputs(row, root)) for row in rows]
  table = f"Table {_TABLE.value}\n{paper.side_by_side(found)}"
  (root / f"table{_TABLE.value}.txt").write_text(table + "\n", encoding="utf-8")
  print(f"\n{table}")


def stages_of(row: Row, root: pathlib.Path, passed: Passed) -> list[stages.Stage]:
  """What a row takes: the trainings that lead to it, then its evaluations."""
  made = _trainings(row, root, passed)
  return made + _evaluations(row, root, passed, tuple(stage.name for stage in made[-1:]))


def _trainings(row: Row, root: pathlib.Path, passed: Passed) -> list[stages.Stage]:
  if row.config in (BASE, S1K_7B):
    return []
  before = _trainings(ROWS[row.after], root, passed) if row.after else []
  file = _config(row.config, passed)
  return [*before, stages.training(row.config, file, passed.train, root, row.after)]


def _config(name: str, passed: Passed) -> str:
  return f"{stages.CONFIGS / name}.py{passed.arguments}"


def _evaluations(row: Row, root: pathlib.Path, passed: Passed, needs) -> list[stages.Stage]:
  """One of the benchmarks with samples, one of those without."""
  model, flags = str(root / row.config), []  # asked as the run asked
  if row.config in (BASE, S1K_7B):
    config = stages.config_of(_config("srl_math", passed), passed.train)
    model = config.model if row.config == BASE else S1K_MODEL
    flags = [f"--max_tokens={config.eval.max_tokens}", "--style=plain"]
  made = []
  for benchmarks, samples, output in zip(
    (_SAMPLED.value, _GREEDY.value), (_SAMPLES.value, 0), _outputs(row, root)
  ):
    if benchmarks:
      more = [*flags, f"--samples={samples}", *passed.evaluate]
      name = f"{row.config}.{output.name}"
      made.append(stages.evaluation(name, model, output, benchmarks, more, needs))
  return made


def _outputs(row: Row, root: pathlib.Path) -> list[pathlib.Path]:
  """The folders of the two evaluations."""
  return [root / row.config / "evaluation" / name for name in (f"at_{_SAMPLES.value}", "greedy")]


if __name__ == "__main__":
  sys.argv, *passed = stages.split_flags(sys.argv, ":", "--config.", "--evaluate.")
  arguments, train, evaluate = passed
  passed = Passed("".join(arguments), train, [f"--{flag.partition('.')[2]}" for flag in evaluate])
  command_line.run(functools.partial(main, passed), flags.values)
