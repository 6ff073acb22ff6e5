"""Examples to train on: from a Hugging Face dataset, from JSON lines, or the built-in family.

An expert solution of N steps becomes N-1 prompts (paper, 4.2): the problem and the steps so far,
with the next step as the target. Whole problems are held out for validation, never single steps.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

from srl_jax.data import rows, solutions
from srl_jax.data.problems import METHODS, Problem, normal, read_problems
from srl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class StepExample:
  """One training prompt: what the policy sees, and what it is rewarded for.

  Attributes:
    id: unique name of this example; for a step, problem_id + "/" + the step's number.
    problem_id: the problem it comes from; a problem is held out as a whole.
    task: srl | one_step | rlvr | sft; it selects the prompt and the reward.
    problem: the question.
    context: what stands of the solution so far, in order (empty: nothing yet).
    hint: title of the step to come, or None; the target then leaves the title out.
    target: the expert's text (srl: the next step; one_step: the whole solution; sft: the
      response to learn; rlvr: empty).
    answer: gold final answer, or None where the source has none.
  """

  id: str
  problem_id: str
  task: str
  problem: str
  context: list[str]
  hint: str | None
  target: str
  answer: str | None


@dataclasses.dataclass(frozen=True)
class Examples:
  """What a source gives: examples, and what became of its rows.

  Attributes:
    train: examples to train on.
    validation: examples of the held-out problems.
    counts: "rows", "kept" (solutions or problems used) and one count per reason for leaving out.
  """

  train: list[StepExample]
  validation: list[StepExample]
  counts: dict[str, int]


_KEYS = {field.name for field in dataclasses.fields(StepExample)}


# ---------------------------------------------------------------------------------- one problem


def step_examples(
  problem_id: str,
  problem: str,
  solution_text: str,
  answer: str | None,
  *,
  title_hint: bool,
  keep_last_step: bool,
) -> list[StepExample]:
  """Returns the prompts x_k = [problem, preamble, y_1..y_{k-1}] with the targets y_k (paper, 4.2).

  k runs to N-1 for a solution of N steps; [] if it has fewer than two.

  Args:
    problem_id: name of the problem; step k gets the id `problem_id/k`.
    problem: the question.
    solution_text: the expert's numbered solution.
    answer: gold final answer, or None.
    title_hint: give the title of step k as the hint and leave it out of the target (footnote 1 of
      the paper), where the step has a title and more than that.
    keep_last_step: let k run to N. The paper does not; the last step is the one that a token
      limit cuts off.
  """
  solution = solutions.split_solution(solution_text)
  steps = solution.steps
  if len(steps) < 2:
    return []
  context = [solution.preamble] if solution.preamble else []
  examples = []
  for step in steps if keep_last_step else steps[:-1]:
    hint = step.title if title_hint and step.body else None
    examples.append(
      StepExample(
        id=f"{problem_id}/{step.number}",
        problem_id=problem_id,
        task="srl",
        problem=problem,
        context=list(context),
        hint=hint,
        target=step.body if hint else step.text,
        answer=answer,
      )
    )
    context.append(step.text)
  return examples


def _examples(problem: Problem, method: str, data: Any) -> list[StepExample]:
  if method == "srl":
    return step_examples(
      problem.id,
      problem.text,
      problem.solution,
      problem.answer,
      title_hint=data.title_hint,
      keep_last_step=data.keep_last_step,
    )
  target = "" if method == "rlvr" else problem.solution
  return [
    StepExample(problem.id, problem.id, method, problem.text, [], None, target, problem.answer)
  ]


# ---------------------------------------------------------------------------------- a source


def load_examples(data: Any, *, method: str, seed: int) -> Examples:
  """Returns the training and validation examples of a config's data.

  Args:
    data: the config's group `data`. `source` = "hub": `path` names a Hugging Face dataset, `split`
      its split. "jsonl": `path` is a file with a row per line, a file of step examples, or a
      folder that `srl_jax.prepare` wrote (it holds out by itself, with the same settings).
      "arithmetic": the built-in problems. `fields` names the columns. `domain` = "swe": the rows
      are an agent's runs (data.runs), and `fields.solution` names their messages.
    method: srl | one_step | rlvr | sft.
    seed: with the problems' ids, it alone decides which `data.holdout` problems are held out.

  Raises:
    UserError: input that is missing, empty, broken or of no use, with the place and the remedy.
  """
  if method not in METHODS:
    raise UserError(f"method={method!r}: use one of {', '.join(METHODS)}")
  if data.source == "arithmetic":
    from srl_jax.data import arithmetic  # it imports this module

    return arithmetic.load(data, method=method, seed=seed)
  if data.source == "jsonl":
    path = pathlib.Path(data.path)
    if path.is_dir():
      return _read_prepared(path, data, method)
    if next(rows.json_lines(path))[1].keys() >= _KEYS:
      examples = _read_step_examples(path, method)
      counts = {"rows": len(examples), "kept": len(examples)}
      return hold_out(examples, counts, data.holdout, seed)
  if data.get("domain") == "swe":
    from srl_jax.data import runs  # it imports this module

    return runs.load(data, method=method, seed=seed)
  problems, counts = read_problems(data, method=method)
  return make_examples(problems, counts, data, method=method, seed=seed)


def make_examples(
  problems: list[Problem], counts: dict[str, int], data: Any, *, method: str, seed: int
) -> Examples:
  """Returns the examples of `read_problems`' problems; arguments and errors: `load_examples`."""
  examples = [example for problem in problems for example in _examples(problem, method, data)]
  return hold_out(examples, counts, data.holdout, seed)


def hold_out(
  examples: list[StepExample],
  counts: dict[str, int],
  holdout: int,
  seed: int,
  *,
  key: Callable[[str], str] = normal,
) -> Examples:
  """Returns the examples with `holdout` whole problems set apart for validation.

  Which ones is a pure function of the seed and the problems' ids. Problems whose texts have the
  same key count as one.
  """
  ids: dict[str, str] = {}  # a problem's key -> the smallest of its ids
  for example in examples:
    text = key(example.problem)
    ids[text] = min(example.problem_id, ids.get(text, example.problem_id))
  if not 0 <= holdout < len(ids):
    raise UserError(
      f"data.holdout={holdout}: must be at least 0 and leave a problem to train on; there are"
      f" {len(ids)} usable problems"
    )
  draw = sorted(ids.values(), key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest())
  held_out = set(draw[:holdout])
  sides: tuple[list[StepExample], list[StepExample]] = ([], [])
  for example in examples:
    sides[ids[key(example.problem)] in held_out].append(example)
  return Examples(*sides, counts=counts)


def _read_prepared(folder: pathlib.Path, data: Any, method: str) -> Examples:
  """Returns what `srl_jax.prepare` wrote to a folder, if the config asks for the same."""
  try:
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    settings, counts = summary["settings"], summary["counts"]
  except (OSError, KeyError, ValueError) as error:
    raise UserError(
      f"{folder} has no readable summary.json: set data.path to a file of JSON lines or to a folder"
      " that srl_jax.prepare wrote"
    ) from error
  wanted = {
    "method": method,
    "title_hint": data.title_hint,
    "keep_last_step": data.keep_last_step,
    "holdout": data.holdout,
    "domain": data.get("domain", "math"),
  }
  if method == "sft":
    settings["fields.reasoning"] = settings.get("fields", {}).get("reasoning", "")
    wanted["fields.reasoning"] = data.fields.reasoning
  if wanted["domain"] == "swe":
    wanted["swe"] = data.swe.to_dict()
  for key, value in wanted.items():
    before = settings.get(key)
    if before != value:
      raise UserError(
        f"{folder} was prepared with {key}={before!r}, the config has {value!r}: run prepare again"
        " or change the config"
      )
  train = _read_step_examples(folder / "train.jsonl", method)
  if not settings["holdout"]:
    return Examples(train, [], counts)
  return Examples(train, _read_step_examples(folder / "validation.jsonl", method), counts)


def _read_step_examples(path: pathlib.Path, method: str) -> list[StepExample]:
  examples = []
  texts: dict[str, str] = {}
  for place, row in rows.json_lines(path):
    missing = sorted(_KEYS - row.keys())
    if missing:
      raise UserError(f"{place}: a step example without {', '.join(map(repr, missing))}")
    example = StepExample(**{key: row[key] for key in _KEYS})
    if example.task != method:
      raise UserError(
        f"{place}: prepared for method={example.task!r}, the config has {method!r}: run"
        f" srl_jax.prepare with --method={method}"
      )
    # One string for all steps of a problem: an agent's run repeats its issue some thirty times.
    problem = texts.setdefault(example.problem_id, example.problem)
    if problem != example.problem:
      raise UserError(f"{place}: the problem_id {example.problem_id!r} names two problems")
    examples.append(dataclasses.replace(example, problem=problem))
  return examples
