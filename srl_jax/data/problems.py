"""Reads problems with expert solutions from rows; the config names the columns."""

import collections
import dataclasses
import hashlib
import itertools
import logging
from typing import Any

from srl_jax.data import rows, solutions, step_labels
from srl_jax.data.data_config import Columns, DataConfig
from srl_jax.data.examples import ExampleKind, normalized
from srl_jax.data.gold import gold_answer
from srl_jax.data.thoughts import as_response, split_thoughts
from srl_jax.errors import UserError
from srl_jax.rewards.answers import parsable

# Longest gold answer, in characters. A longer field is a worked solution, which is usable only if
# it boxes its answer.
LONGEST_ANSWER = 400
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Problem:
  """A usable row of a source.

  Attributes:
    id: from the row's id column, else a hash of the problem's text, which does not depend on the
      order of the rows. Further solutions of a problem have the id of the first.
    text: the question.
    solution: the expert's whole solution without think blocks, "" if only the answer is used. For
      supervised fine-tuning on whole solutions, the expert's reasoning in think tags and then the
      solution, if the config names a column of reasoning or the solution contains think blocks.
    answer: gold final answer, or a worked solution that boxes it; or None.
    number: 1 for a problem's first solution, 2 for its second, ...
    had_thoughts: whether the row's solution contained think blocks.
    reasoning: for supervised fine-tuning on single steps, the expert's reasoning, or "".
  """

  id: str
  text: str
  solution: str
  answer: str | None
  number: int = 1
  had_thoughts: bool = False
  reasoning: str = ""


def read_problems(
  data: DataConfig, kind: ExampleKind, progress: rows.Progress | None = None
) -> tuple[list[Problem], dict[str, int]]:
  """Returns the usable problems of a hub dataset or a file of rows, and counts as in `Examples`.

  A row is dropped and counted for one of these reasons (units for which it applies in brackets):
    empty_problem
    empty_solution     (steps, solution)
    no_steps           (steps) no numbered step
    single_step        (steps) only one numbered step
    no_answer          (answer)
    unparsed_answer    (answer) a warning shows the first few
    duplicate          a further row with the same problem (steps: and the same solution)
    surplus_solution   (steps) more than data.solutions_per_problem solutions of a problem
  Two counts describe kept rows: further_solutions (rows that solve a problem again) and thoughts
  (rows with think blocks in the solution). Arguments and errors: `sources.load_examples`.
  """
  if kind.unit == "answer" and not data.fields.answer:
    raise UserError(
      "data.fields.answer is '', but this method compares final answers: name the column of gold"
      " answers (prepare and teacher: --fields=answer=...)"
    )
  counts, unnumbered = collections.Counter(), ""  # unnumbered: the first solution without steps
  found: dict[str, list[Problem]] = {}  # normalized text -> the kept solutions of that problem
  ids: dict[str, str] = {}  # problem id -> the place of its first row
  for place, row in rows.read(data.source, data.path, data.split, progress):
    counts["rows"] += 1
    problem = _problem(row, place, data.fields, kind)
    earlier = found.setdefault(normalized(problem.text), [])
    reason = _again(problem, earlier, data, kind) or _unusable(problem, kind.unit)
    if reason:
      counts[reason] += 1
      unnumbered = unnumbered or (problem.solution if reason == "no_steps" else "")
      continue
    if earlier:
      problem = dataclasses.replace(problem, id=earlier[0].id, number=len(earlier) + 1)
      counts["further_solutions"] += 1
    elif problem.id in ids:
      raise UserError(
        f"{place}: the id {problem.id!r} belongs to another problem too ({ids[problem.id]}): name a"
        " column of unique ids in data.fields.id, or '' for none"
      )
    if problem.had_thoughts:
      counts["thoughts"] += 1
    earlier.append(problem)
    ids.setdefault(problem.id, place)
  problems = list(itertools.chain(*found.values()))
  if kind.unit == "answer":
    problems = _with_parsable_answer(problems, ids, counts)
  counts["kept"] = len(problems)
  if not problems:
    rows_read = counts.pop("rows", 0)
    counts.pop("kept")
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    raise UserError(
      f"{data.path}: none of {rows_read} rows can be used ({reasons}){_hint(counts, unnumbered)}"
    )
  return problems, dict(counts)


def _hint(counts: collections.Counter, unnumbered: str) -> str:
  """Returns the remedy if most rows were dropped because their solutions have no numbered steps.

  Args:
    counts: of all reasons.
    unnumbered: the first solution without numbered steps, or "".
  """
  if not unnumbered or counts["no_steps"] < max(counts.values()):
    return ""
  start = unnumbered if len(unnumbered) < 200 else f"{unnumbered[:200]} ..."
  return (
    f". The first solution without numbered steps begins {start!r}; steps are read in these forms:"
    f" {step_labels.READ}. Number them so, name another column in data.fields.solution, or let"
    " srl_jax.teacher write solutions"
  )


def _again(
  problem: Problem, earlier: list[Problem], data: DataConfig, kind: ExampleKind
) -> str | None:
  """Returns the reason to drop a further row of a problem in `earlier`, or None to keep it."""
  if not earlier:
    return None
  solution = normalized(problem.solution)
  if kind.unit != "steps" or any(normalized(e.solution) == solution for e in earlier):
    return "duplicate"
  # 0 means no limit; `earlier` is not empty here, so 0 never equals its length.
  if len(earlier) == data.solutions_per_problem:
    return "surplus_solution"
  return None


def _with_parsable_answer(
  problems: list[Problem], places: dict[str, str], counts: collections.Counter
) -> list[Problem]:
  """Returns the problems with gold answers that can be parsed; counts and logs the others.

  An answer that the parser does not understand equals almost no response, so its reward would be 0
  for right and wrong responses alike. All answers are parsed in one call, which runs in parallel.
  """
  kept, shown = [], []
  for problem, is_parsable in zip(problems, parsable([problem.answer for problem in problems])):
    if is_parsable:
      kept.append(problem)
    else:
      shown.append(f"{places[problem.id]}: {problem.answer[:100]!r}")
  if shown:
    counts["unparsed_answer"] = len(shown)
    _LOG.warning(
      "dropped %d rows with gold answers that cannot be parsed: %s",
      len(shown),
      "; ".join(shown[:3]),
    )
  return kept


def _problem(row: dict[str, Any], place: str, fields: Columns, kind: ExampleKind) -> Problem:
  """Returns a row as a Problem; fields that the unit does not use are empty."""
  text = _text(row, place, fields, "problem")
  solution = "" if kind.unit == "answer" else _text(row, place, fields, "solution")
  thoughts, without_thoughts = split_thoughts(solution)
  reasoning = _text(row, place, fields, "reasoning") if kind.supervised else ""
  # Whole solutions are learnt with their reasoning. Single steps are split from the bare solution,
  # and `monologues.with_monologue` puts a part of the reasoning before each of them.
  if kind.supervised and kind.unit != "steps" and solution:
    solution = as_response(solution, reasoning)
  else:
    solution = without_thoughts
  digest = hashlib.sha256(normalized(text).encode()).hexdigest()
  return Problem(
    id=_text(row, place, fields, "id") or digest[:12],
    text=text,
    solution=solution,
    answer=_answer(split_thoughts(_text(row, place, fields, "answer"))[1]),
    had_thoughts=bool(thoughts),
    reasoning=(reasoning or thoughts) if kind.supervised else "",
  )


def _answer(text: str) -> str | None:
  """Returns the gold answer, or None if there is none or it is a long text without a box."""
  answer = gold_answer(text)
  return answer if answer and (len(answer) <= LONGEST_ANSWER or "\\boxed" in answer) else None


def _text(row: dict[str, Any], place: str, fields: Columns, field: str) -> str:
  """Returns a field of a row as stripped text; "" if it is null or the config names no column.

  Raises UserError if the column is missing, or holds a list, an object or a lone surrogate.
  """
  column = getattr(fields, field)
  if not column and field in ("answer", "id", "reasoning"):
    return ""
  if column not in row:
    raise UserError(
      f"{place}: no field {column!r}, which data.fields.{field} names (prepare:"
      f" --fields={field}=...); the row has {', '.join(map(repr, row))}"
    )
  value = row[column]
  if value is None or value != value:  # NaN
    return ""
  # Ids and answers may be numbers; the other fields must be strings.
  if isinstance(value, bool | list | dict) or (
    field in ("problem", "solution", "reasoning") and not isinstance(value, str)
  ):
    kind = type(value).__name__
    raise UserError(f"{place}: the field {column!r} (data.fields.{field}) is a {kind}, not a text")
  # LF line ends, which a policy writes: with CR LF in the target even a perfect step scores low.
  text = str(value).replace("\r\n", "\n").replace("\r", "\n").strip()
  if rows.has_half_character(text):
    raise UserError(f"{place}: the field {column!r} contains a lone surrogate (invalid Unicode)")
  return text


def _unusable(problem: Problem, unit: str) -> str | None:
  """Returns the reason to drop a problem, or None to keep it."""
  if not problem.text:
    return "empty_problem"
  if unit == "answer":
    return None if problem.answer else "no_answer"
  if not problem.solution:
    return "empty_solution"
  if unit == "steps":
    return {0: "no_steps", 1: "single_step"}.get(len(solutions.split_steps(problem.solution)))
  return None
