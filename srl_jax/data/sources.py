"""Loads training examples from a Hugging Face dataset, JSON lines or the built-in problems.

An expert solution of N steps becomes N-1 prompts (paper, 4.2): the problem and the steps so far,
with the next step as the target. Whole problems are held out for validation, never single steps.
"""

import dataclasses
import json
import pathlib
from typing import Any

from srl_jax.data import arithmetic, rows, runs, solutions
from srl_jax.data.data_config import DataConfig
from srl_jax.data.examples import ExampleKind, Examples, StepExample, hold_out
from srl_jax.data.gold import gold_answer
from srl_jax.data.monologues import with_monologue
from srl_jax.data.problems import Problem, read_problems
from srl_jax.errors import UserError

__all__ = ["Examples", "StepExample", "load_examples", "make_examples", "step_examples"]


_KEYS = {field.name for field in dataclasses.fields(StepExample)}  # of a row that is a step example


# ---------------------------------------------------------------------------------- one problem


def step_examples(
  task: str,
  problem_id: str,
  problem: str,
  solution_text: str,
  answer: str | None,
  *,
  title_hint: bool,
  keep_last_step: bool,
) -> list[StepExample]:
  """Returns one example per step: prompt x_k = [problem, preamble, y_1..y_{k-1}], target y_k.

  A solution of N steps gives k = 1..N-1 (paper, 4.2); one with fewer than two steps gives [].

  Args:
    task: task name of the examples.
    problem_id: name of the problem; step k gets the id `problem_id/k`.
    problem: the question.
    solution_text: the expert's numbered solution.
    answer: gold final answer, or None.
    title_hint: use the title of step k as the hint and remove it from the target (footnote 1 of
      the paper), if the step has a title and a body.
    keep_last_step: include k = N. The paper excludes it; the last step is the one that the
      teacher's token limit may have truncated.
  """
  solution = solutions.split_solution(solution_text)
  steps = solution.steps
  if len(steps) < 2:
    return []
  context = [solution.preamble] if solution.preamble else []
  examples = []
  for step in steps if keep_last_step else steps[:-1]:
    # Without a body the title is all there is to predict, so it remains the target.
    hint = step.title if title_hint and step.body else None
    examples.append(
      StepExample(
        id=f"{problem_id}/{step.number}",
        problem_id=problem_id,
        task=task,
        problem=problem,
        context=list(context),  # a copy: the list grows with each step
        hint=hint,
        target=step.body if hint else step.text,
        answer=answer,
      )
    )
    context.append(step.text)
  return examples


def _examples(problem: Problem, kind: ExampleKind, data: DataConfig) -> list[StepExample]:
  """Returns the examples of one problem: one per step, or one for the whole problem."""
  if kind.unit == "steps":
    # Further solutions of a problem need distinct example ids but share the problem_id (below), so
    # that all of them are held out together.
    further = f"#{problem.number}" if problem.number > 1 else ""
    examples = step_examples(
      kind.task,
      problem.id + further,
      problem.text,
      problem.solution,
      problem.answer,
      title_hint=data.title_hint,
      keep_last_step=data.keep_last_step,
    )
    if kind.supervised:
      examples = [with_monologue(example, problem.reasoning) for example in examples]
    return [dataclasses.replace(example, problem_id=problem.id) for example in examples]
  return [
    StepExample(
      id=problem.id,
      problem_id=problem.id,
      task=kind.task,
      problem=problem.text,
      context=[],
      hint=None,
      target="" if kind.unit == "answer" else problem.solution,
      answer=problem.answer,
    )
  ]


# ---------------------------------------------------------------------------------- a source


def load_examples(data: DataConfig, kind: ExampleKind, *, seed: int) -> Examples:
  """Returns the training and validation examples of a source.

  Args:
    data: `source` = "hub": `path` names a Hugging Face dataset, `split` its split. "jsonl": `path`
      is a file or folder of rows (rows.local_rows), a file of step examples, or a folder that
      `srl_jax.prepare` wrote (already split into training and validation). "arithmetic": the
      built-in problems. `fields` names the columns. With `trajectories` the rows are an agent's
      runs (data.runs), and `fields.solution` is the column of their messages.
    kind: which examples to make.
    seed: of the choice of the `data.holdout` held-out problems, which depends on nothing else but
      the problems' ids.

  Raises:
    UserError: the input is missing, empty, malformed or unusable; the message has place and remedy.
  """
  if data.source == "arithmetic":
    return arithmetic.load(data, kind, seed=seed)
  if data.source == "jsonl":
    path = pathlib.Path(data.path)
    if path.is_dir() and _is_prepared(path):
      return _read_prepared(path, data, kind)
    # The first row's keys decide whether the file holds step examples or solutions to split.
    if next(rows.local_rows(path, data.split))[1].keys() >= _KEYS:
      examples = _read_step_examples(path, kind, {})
      counts = {"rows": len(examples), "kept": len(examples)}
      return hold_out(examples, counts, data.holdout, seed)
  if data.trajectories:
    return runs.load(data, kind, seed=seed)
  problems, counts = read_problems(data, kind)
  return make_examples(problems, counts, data, kind, seed=seed)


def make_examples(
  problems: list[Problem], counts: dict[str, int], data: DataConfig, kind: ExampleKind, *, seed: int
) -> Examples:
  """Returns the examples of `read_problems`' problems; arguments and errors: `load_examples`."""
  examples = []
  for problem in problems:
    examples += _examples(problem, kind, data)
  return hold_out(examples, counts, data.holdout, seed)


# ---------------------------------------------------------------------------------- step examples


def _is_prepared(folder: pathlib.Path) -> bool:
  """Returns whether srl_jax.prepare wrote the folder, or was interrupted before summary.json."""
  if (folder / "summary.json").is_file():
    return True
  for name in ("train.jsonl", "validation.jsonl"):
    file = folder / name
    if file.is_file() and file.stat().st_size and next(rows.json_lines(file))[1].keys() >= _KEYS:
      return True
  return False


def _read_prepared(folder: pathlib.Path, data: DataConfig, kind: ExampleKind) -> Examples:
  """Returns the examples in a folder of `srl_jax.prepare`, if the config has the same settings."""
  try:
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    settings, counts = summary["settings"], summary["counts"]
  except (OSError, KeyError, ValueError) as error:
    raise UserError(
      f"{folder} has no readable summary.json: set data.path to a file of JSON lines or to a folder"
      " that srl_jax.prepare wrote"
    ) from error
  _check_prepared(folder, settings, data, kind)
  places: dict[str, str] = {}
  train = _read_step_examples(folder / "train.jsonl", kind, places)
  if not settings["holdout"]:  # validation.jsonl is then empty, which `json_lines` rejects
    return Examples(train, [], counts)
  return Examples(train, _read_step_examples(folder / "validation.jsonl", kind, places), counts)


def _check_prepared(
  folder: pathlib.Path, settings: dict[str, Any], data: DataConfig, kind: ExampleKind
) -> None:
  """Raises UserError if the folder was prepared with other settings than the config's.

  Only settings that change the examples are compared.
  """
  now: dict[str, Any] = {
    "method": kind.method,
    "title_hint": data.title_hint,
    "keep_last_step": data.keep_last_step,
    "holdout": data.holdout,
    "domain": data.domain,
  }
  if kind.supervised:
    settings["fields.reasoning"] = settings.get("fields", {}).get("reasoning", "")
    now["fields.reasoning"] = data.fields.reasoning
  if data.trajectories:
    now[data.domain] = dataclasses.asdict(data.trajectories)
  # Folders of older versions have no such key: they hold one solution per problem and stay usable.
  now["solutions_per_problem"] = data.solutions_per_problem
  settings.setdefault("solutions_per_problem", data.solutions_per_problem)
  for key, value in now.items():
    before = settings.get(key)
    if before != value:
      raise UserError(
        f"{folder} was prepared with {key}={before!r}, but the config has {value!r}: run prepare"
        " again or change the config"
      )


def _read_step_examples(
  path: pathlib.Path, kind: ExampleKind, places: dict[str, str]
) -> list[StepExample]:
  """Returns the step examples of a file.

  Args:
    path: a file of JSON lines.
    kind: which task and fields the examples must have.
    places: {id: place} of the files read so far; updated, so that ids are unique across files.
  """
  examples = []
  texts: dict[str, str] = {}
  for place, row in rows.local_rows(path):
    example = _step_example(place, row, kind)
    first = places.setdefault(example.id, place)
    if first != place:
      raise UserError(f"{place}: the 'id' {example.id!r} was used in {first} too: make ids unique")
    # All steps of a problem share one string object. An agent's run repeats its issue in some
    # thirty rows, which would otherwise dominate the memory of the data set.
    problem = texts.setdefault(example.problem_id, example.problem)
    if problem != example.problem:
      raise UserError(f"{place}: the problem_id {example.problem_id!r} names two problems")
    examples.append(dataclasses.replace(example, problem=problem))
  return examples


def _step_example(place: str, row: dict[str, Any], kind: ExampleKind) -> StepExample:
  """Returns a row as a step example; raises UserError if it does not fit the config's method."""
  missing = sorted(_KEYS - row.keys())
  if missing:
    raise UserError(f"{place}: the step example has no {', '.join(map(repr, missing))}")
  example = StepExample(**{key: row[key] for key in _KEYS})
  answer = example.answer
  if isinstance(answer, str) or answer != answer:  # NaN, a missing cell, becomes None
    example = dataclasses.replace(example, answer=gold_answer(answer))
  _check_types(place, example)
  unix = lambda text: text.replace("\r\n", "\n")  # line ends, as in problems.py
  example = dataclasses.replace(
    example,
    problem=unix(example.problem),
    context=list(map(unix, example.context)),
    target=unix(example.target),
  )
  # prepare 0.1 wrote the method into `task`; the two names can differ.
  if example.task == kind.method:
    example = dataclasses.replace(example, task=kind.task)
  # Supervised fine-tuning accepts the prompts of any task: it needs a response but no reward.
  if example.task != kind.task and not kind.supervised:
    raise UserError(
      f"{place}: task={example.task!r}, but the config's method is {kind.method!r} with task"
      f" {kind.task!r}: write this task into the rows, or run srl_jax.prepare with"
      f" --method={kind.method}"
    )
  for field in kind.needs:
    if not str(getattr(example, field) or "").strip():
      raise UserError(f"{place}: {field!r} is empty, but method={kind.method!r} requires it")
  return example


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _check_types(place: str, example: StepExample) -> None:
  """Raises UserError for a field of the wrong type, or with a lone surrogate."""
  for field in ("id", "problem_id", "task", "problem", "target"):
    value = getattr(example, field)
    if not isinstance(value, str):
      raise UserError(f"{place}: {field!r} is a {type(value).__name__}, expected a string")
  for field in ("hint", "answer"):
    value = getattr(example, field)
    if not isinstance(value, str | None):
      raise UserError(f"{place}: {field!r} is a {type(value).__name__}, expected a string or null")
  context = example.context
  if not isinstance(context, list) or not all(map(_is_text, context)):
    raise UserError(f"{place}: 'context' is not a list of strings")
  for field, value in vars(example).items():
    texts = value if field == "context" else [value or ""]
    if any(map(rows.has_half_character, texts)):
      raise UserError(f"{place}: the field {field!r} contains a lone surrogate (invalid Unicode)")
