"""Trains and evaluates the rows of Tables 1 to 3 of the paper, for launch/table1.sh to table3.sh.

The tables share a folder, so a row of several tables, such as SRL, is trained once.
"""

import functools
import pathlib
import sys

from launch import stages
from srl_jax import command_line
from srl_jax.evals import paper

# Rows by the names of their configs, which are also the keys of paper.PAPER: the title, and the row
# that it starts from, at its best checkpoint.
ROWS = {
  "base": ("base model", ""),
  "s1k_7b": ("S1K-7B", ""),
  "sft_reasoning": ("SFT (R1 reasoning)", ""),
  "sft_outline": ("SFT (R1 outline)", ""),
  "rlvr_math": ("RL(VR)", ""),
  "sft_rlvr_math": ("SFT (outline), then RL(VR)", "sft_outline"),
  "srl_math": ("SRL", ""),
  "srl_rlvr_math": ("SRL, then RLVR", "srl_math"),
  "srl_math_no_filter": ("SRL without dynamic sampling", ""),
  "one_step_math": ("one-step similarity", ""),
}
TABLES = {
  "1": list(ROWS)[:8],
  "2": ["srl_math_no_filter", "srl_math"],
  "3": ["rlvr_math", "one_step_math", "srl_math"],
}
# Rows that are evaluated without training; "" is the model of the config.
MODELS = {"base": "", "s1k_7b": "simplescaling/s1.1-7B"}

flags = command_line.own_flags()
_TABLE = flags.DEFINE_enum("table", None, list(TABLES), "Which table.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs", "Folder of the rows' workdirs.")
_ROWS = flags.DEFINE_list("rows", [], f"Some of the table's: {', '.join(ROWS)}.")
_SAMPLES = flags.DEFINE_integer("samples", 32, "k of avg@k.", 1)
_SAMPLED = flags.DEFINE_list("sampled", ["amc23", "aime24", "aime25"], "Greedy and avg@k.")
_GREEDY = flags.DEFINE_list("greedy", ["minerva_math"], "Benchmarks by greedy decoding alone.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands that would be started.")


def main(passed: dict[str, list[str]], argv: list[str]) -> None:
  del argv
  of_table, root, todo = TABLES[_TABLE.value], pathlib.Path(_WORKDIR.value), {}
  rows = stages.chosen(_ROWS.value or of_table, of_table)
  for row in rows:
    todo |= commands_of(row, root, passed)
  stages.run(todo, _DRY_RUN.value)
  found = [(row, ROWS[row][0], _outputs(row, root)) for row in rows]
  table = f"Table {_TABLE.value}\n{paper.side_by_side(found)}"
  (root / f"table{_TABLE.value}.txt").write_text(table + "\n", encoding="utf-8")
  print(f"\n{table}")


def commands_of(row: str, root: pathlib.Path, passed: dict[str, list[str]]) -> stages.Commands:
  """The trainings that lead to a row and its evaluations, with samples and without.

  Args:
    passed: of the command line, arguments of every config (":"), flags of every training
      ("--config.") and of every evaluation ("--evaluate.").
  """
  file = lambda name: f"{stages.CONFIGS / name}.py" + "".join(passed[":"])
  overrides, model, more, made = passed["--config."], root / row, [], {}
  if row in MODELS:
    # srl_jax.evaluate reads prompts and lengths from a run's config.json; a model has none.
    config = stages.config_of(file("srl_math"), overrides)
    model = MODELS[row] or config.model
    more = [f"--max_tokens={config.eval.max_tokens}", "--style=plain"]
  elif before := ROWS[row][1]:
    made |= stages.train(file(before), root / before, overrides)
    made |= stages.train(file(row), model, overrides, root / before)
  else:
    made |= stages.train(file(row), model, overrides)
  more += [flag.replace("--evaluate.", "--", 1) for flag in passed["--evaluate."]]
  passes = ((_SAMPLED.value, _SAMPLES.value), (_GREEDY.value, 0))
  for (benchmarks, samples), output in zip(passes, _outputs(row, root)):
    if benchmarks:
      made |= stages.evaluate(model, output, benchmarks, [f"--samples={samples}", *more])
  return made


def _outputs(row: str, root: pathlib.Path) -> list[pathlib.Path]:
  """The folders of the two evaluations."""
  return [root / row / "evaluation" / name for name in (f"at_{_SAMPLES.value}", "greedy")]


if __name__ == "__main__":
  PASSED = {":": [], "--config.": [], "--evaluate.": []}
  for prefix, arguments in PASSED.items():
    arguments += [argument for argument in sys.argv if argument.startswith(prefix)]
  sys.argv = [argument for argument in sys.argv if not argument.startswith(tuple(PASSED))]
  command_line.run(functools.partial(main, PASSED), flags.values)
