"""Prepares step examples from expert solutions or agents' runs, and prints a summary.

  python -m srl_jax.prepare --source=simplescaling/s1K-1.1 --output=data/s1k
  python -m srl_jax.prepare --source=rows.jsonl --output=data/mine \\
      --fields=problem=problem,solution=response,answer=answer --holdout=20
  python -m srl_jax.prepare --source=rows.jsonl --output=data/hard --fields=... \\
      --hard --model=Qwen/Qwen2.5-7B-Instruct --samples=8
  python -m srl_jax.prepare --domain=swe --source=SWE-bench/SWE-smith-trajectories --split=xml \\
      --fields=solution=messages,id=traj_id --output=data/swe --holdout=30 --keep_last_step

The command writes train.jsonl, validation.jsonl (whole problems, held out) and summary.json, and
prints the summary. A config reads the folder with data.source='jsonl' and data.path=FOLDER. This
step is optional and lets you inspect the examples: a config that names the source itself makes the
same ones.

With --hard only those problems are kept that a model solves in at most --max_success_rate of k
samples (paper, 4.1); hard.jsonl has a line per problem with its rate and whether it was kept, and
hard/ has the samples. An interrupted command continues where it stopped.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

from srl_jax import command_line, folders, progress
from srl_jax.config import CHOICES, defaults
from srl_jax.data import problems as problems_lib
from srl_jax.data import rows, solutions, sources
from srl_jax.data import runs as runs_lib
from srl_jax.data.data_config import Columns, DataConfig, TrajectoryConfig
from srl_jax.data.examples import REMARKS, Examples, StepExample
from srl_jax.errors import UserError
from srl_jax.tasks import methods
from srl_jax.tasks.examples import example_kind

_DEFAULTS = defaults().data
_PARTIAL = ".partial"  # folder in the output for files that are not complete yet

flags = command_line.own_flags()
_SOURCE = flags.DEFINE_string(
  "source", None, "Name of a Hugging Face dataset, or a file of JSON lines.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)
_DOMAIN = flags.DEFINE_enum(
  "domain",
  _DEFAULTS.domain,
  CHOICES["data.domain"],
  "Rows are numbered solutions, or an agent's trajectories.",
)
_FIELDS = flags.DEFINE_list(
  "fields",
  ["problem=question", "solution=deepseek_attempt", "answer=solution"],  # s1K-1.1
  "Columns of the source: problem=, solution=, answer=, id= and, for --method=sft, reasoning=; the"
  " last three may be left out. For trajectories: solution= (the messages) and id=, which may be"
  " left out.",
)
_SPLIT = flags.DEFINE_string("split", "train", "Split of a Hugging Face dataset.")
_HOLDOUT = flags.DEFINE_integer(
  "holdout", _DEFAULTS.holdout, "Problems to hold out for validation."
)
_SEED = flags.DEFINE_integer("seed", 0, "Selects the held-out problems, together with their ids.")
_TITLE_HINT = flags.DEFINE_bool(
  "title_hint", False, "Give the next step's title in the prompt; the target is then the rest."
)
_KEEP_LAST_STEP = flags.DEFINE_bool("keep_last_step", False, "Make the last step a target too.")
_SOLUTIONS_PER_PROBLEM = flags.DEFINE_integer(
  "solutions_per_problem",
  _DEFAULTS.solutions_per_problem,
  "Expert solutions to take of one problem; 0 for all.",
  0,
)
_METHOD = flags.DEFINE_enum("method", defaults().method, methods(), "Method to train with.")

# Flags of trajectories; names and defaults are those of the config's group data.swe.
_SWE = {
  "expert": flags.DEFINE_string(
    "expert", _DEFAULTS.swe.expert, "Agent that made the runs; '' for any."
  ),
  "resolved": flags.DEFINE_bool(
    "resolved", _DEFAULTS.swe.resolved, "Only runs that resolved their issue."
  ),
  "runs": flags.DEFINE_integer("runs", _DEFAULTS.swe.runs, "Most runs to take; 0 for all.", 0),
  "pairs": flags.DEFINE_integer(
    "pairs", _DEFAULTS.swe.pairs, "(action, observation) pairs in a prompt.", 0
  ),
  "validation_steps": flags.DEFINE_integer(
    "validation_steps",
    _DEFAULTS.swe.validation_steps,
    "Steps to validate on; 0 for all of the held-out runs.",
    0,
  ),
}

_HARD = flags.DEFINE_bool("hard", False, "Keep the problems that --model rarely or never solves.")
_MODEL = flags.DEFINE_string("model", None, "--hard: model folder or hub name.")
_SAMPLES = flags.DEFINE_integer("samples", 8, "--hard: solutions for each problem.", 1)
_MAX_SUCCESS_RATE = flags.DEFINE_float(
  "max_success_rate", 0.0, "--hard: the largest share of right solutions of a problem.", 0.0, 1.0
)
_STYLE = flags.DEFINE_enum("style", "plain", ["plain", "think"], "--hard: prompt of solutions.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 4096, "--hard: of a solution.", 1)
_WIDTH = flags.DEFINE_integer("width", 256, "--hard: responses that decode at the same time.", 1)


def main(argv: list[str]) -> None:
  del argv
  output = pathlib.Path(_OUTPUT.value)
  if output.exists() and not output.is_dir():
    raise UserError(f"--output={output} is a file: name a folder")
  if _HARD.value and (_DOMAIN.value != "math" or not _MODEL.value):
    raise UserError("--hard needs a --model, and problems with final answers (--domain=math)")
  data, seed, trials = _data(), _SEED.value, []
  kind = example_kind(_METHOD.value, _DOMAIN.value)
  with contextlib.ExitStack() as stack:
    if data.trajectories:
      with _row_line(data) as line:
        runs, counts = runs_lib.read_runs(data, seed=seed, progress=line.show)
      measures = _measure_runs(runs)
      examples = runs_lib.make_examples(runs, counts, data, kind, seed=seed)
    else:
      with _row_line(data) as line:
        problems, counts = problems_lib.read_problems(data, kind, progress=line.show)
      if _HARD.value:
        questions = _questions(problems)
        # The samples are written to the folder too, so it is locked before sampling.
        stack.enter_context(folders.locked(output))
        problems, trials = _keep_hard(problems, counts, questions, output)
      # Whole solutions are not cut into steps.
      measures = _measure_problems(problems if kind.unit == "steps" else [])
      examples = sources.make_examples(problems, counts, data, kind, seed=seed)
    if not _HARD.value:  # only after all checks, so that bad input leaves no folder behind
      stack.enter_context(folders.locked(output))
    _write_and_show(output, data, examples, measures, trials)


def _write_and_show(
  output: pathlib.Path,
  data: DataConfig,
  examples: Examples,
  measures: dict[str, Any],
  trials: list[dict[str, Any]],
) -> None:
  """Writes the files and prints the summary."""
  summary = {
    "settings": {**_settings(data), "method": _METHOD.value, "seed": _SEED.value},
    "counts": examples.counts,
    **measures,
    "train": _size(examples.train),
    "validation": _size(examples.validation),
  }
  names = _write(output, examples, summary, trials)
  print(_table(summary))
  print(f"wrote {output}/{', '.join(names[:-1])} and {names[-1]}")


def _data() -> DataConfig:
  """Returns the flags as a DataConfig."""
  fields = [field.name for field in dataclasses.fields(Columns)]
  columns = {}
  for item in _FIELDS.value:
    field, _, column = item.partition("=")
    if field not in fields or not column:
      choices = ", ".join(f"{field}=COLUMN" for field in fields)
      raise UserError(f"--fields: {item!r} is none of {choices}")
    columns[field] = column
  source = _SOURCE.value
  trajectories = TrajectoryConfig(**{name: flag.value for name, flag in _SWE.items()})
  return DataConfig(
    source="jsonl" if rows.is_local(source) else "hub",
    path=source,
    split=_SPLIT.value,
    domain=_DOMAIN.value,
    fields=Columns(**columns),
    title_hint=_TITLE_HINT.value,
    keep_last_step=_KEEP_LAST_STEP.value,
    holdout=_HOLDOUT.value,
    solutions_per_problem=_SOLUTIONS_PER_PROBLEM.value,
    trajectories=trajectories if _DOMAIN.value != "math" else None,
  )


def _row_line(data: DataConfig) -> progress.ProgressLine:
  """Returns the progress line for reading rows, with their number if the file has a row a line."""
  total, path = None, pathlib.Path(data.path)
  if data.source == "jsonl" and path.suffix in (".jsonl", ".ndjson") and path.is_file():
    with path.open("rb") as file:
      total = sum(1 for _ in file)
  return progress.ProgressLine(total, name="row", unit="rows")


def _settings(data: DataConfig) -> dict[str, Any]:
  """Returns the settings for summary.json, which data.sources compares with a config."""
  settings = dataclasses.asdict(data)
  trajectories = settings.pop("trajectories")
  if trajectories:
    settings[data.domain] = trajectories
  return settings


# ---------------------------------------------------------------------------------- hard problems


def _keep_hard(
  problems: list[problems_lib.Problem],
  counts: dict[str, int],
  questions: list[Any],
  output: pathlib.Path,
) -> tuple[list[problems_lib.Problem], list[dict[str, Any]]]:
  """Returns the hard problems and a line per problem; adds the dropped ones to `counts`."""
  rates = _success_rates(questions, output)
  kept, trials = [], []
  for problem in problems:
    rate = rates.get(problem.id)  # None: it has no gold answer
    reason = "no_answer" if rate is None else "hard"
    if rate is not None and rate > _MAX_SUCCESS_RATE.value:
      reason = "too_easy"
    if reason == "hard":
      kept.append(problem)
    else:
      counts[reason] = counts.get(reason, 0) + 1
    if problem.number > 1:  # a further solution of a problem that has its line already
      continue
    trials.append(
      {
        "id": problem.id,
        "problem": problem.text,
        "answer": problem.answer,
        "success_rate": rate,
        "kept": reason == "hard",
        "reason": reason,
      }
    )
  counts["kept"] = len(kept)
  if not kept:
    raise UserError(
      f"--hard: {_MODEL.value} solves each of {len(rates)} problems in more than"
      f" {_MAX_SUCCESS_RATE.value:g} of its samples: raise --max_success_rate or --samples, or give"
      " harder problems"
    )
  return kept, trials


def _questions(problems: list[problems_lib.Problem]) -> list[Any]:
  """Returns an `episodes.Question` for every problem with a gold answer."""
  from srl_jax.rollout.episodes import Question  # imports JAX, which is only needed here

  question_of = {}
  for problem in problems:
    if problem.answer:
      question = Question(problem.id, problem.text, problem.answer)
      # One question per problem, even if it has several solutions.
      question_of.setdefault(problem.id, question)
  questions = list(question_of.values())
  if not questions:
    raise UserError("--hard: no problem has a gold answer; name its column, --fields=answer=...")
  return questions


def _success_rates(questions: list[Any], output: pathlib.Path) -> dict[str, float]:
  """Returns {problem's id: share of correct samples}."""
  from srl_jax.evals import hard_problems

  trial = hard_problems.Trial(
    _MODEL.value, _SAMPLES.value, _STYLE.value, _MAX_TOKENS.value, _SEED.value
  )
  total = len(questions) * trial.samples
  width = max(_WIDTH.value, trial.samples)  # a group of samples must fit
  with progress.ProgressLine(total, name="sampling: response", unit="responses") as line:
    show = lambda _, responses: line.show(responses)
    return hard_problems.success_rates(
      trial, questions, output / "hard", width=width, progress=show
    )


# ---------------------------------------------------------------------------------- the summary


def _measure_problems(problems: list[problems_lib.Problem]) -> dict[str, dict[str, int]]:
  """Returns percentiles of steps per solution and characters per step."""
  counts, lengths = [], []
  for problem in problems:
    steps = solutions.split_steps(problem.solution)
    counts.append(len(steps))
    lengths += [len(step.text) for step in steps]
  return {
    "steps_per_solution": _percentiles(counts),
    "characters_per_step": _percentiles(lengths),
  }


def _measure_runs(runs: list[runs_lib.Run]) -> dict[str, dict[str, int]]:
  """Returns percentiles of steps per run and of the lengths of their parts."""
  counts, thoughts, actions, observations = [], [], [], []
  for run in runs:
    counts.append(len(run.steps))
    for step in run.steps:
      thoughts.append(len(step.thought))
      actions.append(len(step.action))
      observations.append(len(step.observation or ""))
  return {
    "steps_per_run": _percentiles(counts),
    "characters_per_thought": _percentiles(thoughts),
    "characters_per_action": _percentiles(actions),
    "characters_per_observation": _percentiles(observations),
  }


def _percentiles(values: list[int]) -> dict[str, int]:
  """Returns the 10th, 50th and 90th percentile (the value at that rank), {} without values."""
  if not values:
    return {}
  ranked = sorted(values)
  return {f"p{percent}": ranked[(len(ranked) - 1) * percent // 100] for percent in (10, 50, 90)}


def _size(examples: list[StepExample]) -> dict[str, int]:
  """Returns the numbers of examples and of distinct problems."""
  problems = {example.problem_id for example in examples}
  return {"examples": len(examples), "problems": len(problems)}


def _table(summary: dict[str, Any]) -> str:
  """Returns the summary as lines of aligned text."""
  counts = summary["counts"]
  lines = [("rows read", counts["rows"]), ("rows kept", counts["kept"])]
  for name in sorted(counts.keys() & REMARKS.keys()):
    lines.append((f"  {REMARKS[name]}", counts[name]))
  for reason in sorted(counts.keys() - {"rows", "kept"} - REMARKS.keys()):
    lines.append((f"  dropped: {reason}", counts[reason]))
  for name, values in summary.items():
    # Entries with percentiles; the others are settings, counts and sizes.
    if "p50" in values:
      text = "/".join(map(str, values.values()))
      lines.append((f"{name.replace('_', ' ')} p10/p50/p90", text))
  for side in ("train", "validation"):
    size = summary[side]
    lines.append((side, f"{size['examples']} examples of {size['problems']} problems"))
  return command_line.two_columns(lines)


# ---------------------------------------------------------------------------------- the files


def _write(
  output: pathlib.Path,
  examples: Examples,
  summary: dict[str, Any],
  trials: list[dict[str, Any]],
) -> list[str]:
  """Writes all files or none, even if the process is killed; returns their names.

  They are written to a folder inside `output`, which the caller has locked, and then moved into
  place. summary.json, without which no config accepts the folder, is removed first and moved last.
  hard.jsonl is written only if there are `trials`.
  """
  lines = {
    "train.jsonl": map(dataclasses.asdict, examples.train),
    "validation.jsonl": map(dataclasses.asdict, examples.validation),
  }
  if trials:
    lines["hard.jsonl"] = trials
  partial = output / _PARTIAL
  shutil.rmtree(partial, ignore_errors=True)  # left by a command that was killed
  partial.mkdir(parents=True)
  try:
    for name, objects in lines.items():
      with (partial / name).open("w", encoding="utf-8") as file:
        for line in objects:
          file.write(json.dumps(line, ensure_ascii=False) + "\n")
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (partial / "summary.json").write_text(text, encoding="utf-8")
    names = [*lines, "summary.json"]
    # From here until the last move the folder has no summary.json, and so is not accepted.
    (output / "summary.json").unlink(missing_ok=True)
    for name in names:
      os.replace(partial / name, output / name)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return names


if __name__ == "__main__":
  command_line.run(main, flags.values)
