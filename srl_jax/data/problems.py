"""Problems with expert solutions, read from rows. The config names the columns."""

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

LONGEST_ANSWER = 400  # characters
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Problem:
  """A usable row of a source.

  Attributes:
    id: of the row's id column, else a hash of the problem's text, so that no order matters. Further
      solutions of a problem have the id of the first.
    text: the question.
    solution: the expert's whole solution ("" where the answer alone is used) without thoughts in
      think tags; for supervised fine-tuning, the expert's reasoning in think tags and then the
      solution, where the config names a column of reasoning or the solution has thoughts in it.
    answer: gold final answer, or a worked solution that boxes it; or None.
    number: 1 for a problem's first solution, 2 for its second, ...
    had_thoughts: whether the solution came with thoughts in it.
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

  Rows are left out and counted by reason, those of a unit in brackets: empty_problem;
  empty_solution (steps, solution); no_steps and single_step (steps: fewer than two are numbered);
  no_answer and unparsed_answer (answer; a warning shows some that cannot be parsed); duplicate (a
  second row with the same problem; steps: and the same solution); surplus_solution (steps: beyond
  data.solutions_per_problem). The remark further_solutions counts the kept rows that solve a
  problem again, the remark thoughts those whose solution came with thoughts. Arguments
  and errors: `sources.load_examples`.
  """
  if kind.unit == "answer" and not data.fields.answer:
    raise UserError(
      "data.fields.answer: '' although final answers are compared; name the column of gold answers"
      " (prepare and teacher: --fields=answer=...)"
    )
  counts, unnumbered = collections.Counter(), ""
  found: dict[str, list[Problem]] = {}  # by the problem's text
  ids: dict[str, str] = {}
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
        f"{place}: the id {problem.id!r} already names another problem ({ids[problem.id]});"
        " name a column of unique ids in data.fields.id, or '' to do without"
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
  """What to do where most solutions have no numbered steps; `unnumbered` is the first of them."""
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
  """Returns the reason to leave out a further row of a problem, if there is one."""
  if not earlier:
    return None
  solution = normalized(problem.solution)
  if kind.unit != "steps" or any(normalized(e.solution) == solution for e in earlier):
    return "duplicate"
  if len(earlier) == data.solutions_per_problem:  # 0: no limit
    return "surplus_solution"
  return None


def _with_parsable_answer(
  problems: list[Problem], places: dict[str, str], counts: collections.Counter
) -> list[Problem]:
  """The problems whose gold answers can be parsed: hardly any answer could equal the others."""
  kept, shown = [], []
  for problem, is_parsable in zip(problems, parsable([problem.answer for problem in problems])):
    if is_parsable:
      kept.append(problem)
    else:
      shown.append(f"{places[problem.id]}: {problem.answer[:100]!r}")
  if shown:
    counts["unparsed_answer"] = len(shown)
    _LOG.warning(
      "gold answers of %d rows cannot be parsed and are left out: %s",
      len(shown),
      "; ".join(shown[:3]),
    )
  return kept


def _problem(row: dict[str, Any], place: str, fields: Columns, kind: ExampleKind) -> Problem:
  text = _text(row, place, fields, "problem")
  solution = "" if kind.unit == "answer" else _text(row, place, fields, "solution")
  thoughts, without_thoughts = split_thoughts(solution)
  reasoning = _text(row, place, fields, "reasoning") if kind.supervised else ""
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
  """The gold answer, or None where there is none or it is an explanation that boxes nothing."""
  answer = gold_answer(text)
  return answer if answer and (len(answer) <= LONGEST_ANSWER or "\\boxed" in answer) else None


def _text(row: dict[str, Any], place: str, fields: Columns, field: str) -> str:
  """Returns a field of a row as stripped text, "" if it is null or the config names no column."""
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
  if isinstance(value, bool | list | dict) or (
    field in ("problem", "solution", "reasoning") and not isinstance(value, str)
  ):
    kind = type(value).__name__
    raise UserError(f"{place}: the field {column!r} (data.fields.{field}) is a {kind}, not a text")
  # With the line ends of Unix, which a policy writes: others would cost a perfect step its reward.
  text = str(value).replace("\r\n", "\n").replace("\r", "\n").strip()
  if rows.has_half_character(text):
    raise UserError(f"{place}: the field {column!r} has half a character (a lone surrogate)")
  return text


def _unusable(problem: Problem, unit: str) -> str | None:
  """Returns the reason to leave a problem out, if there is one."""
  if not problem.text:
    return "empty_problem"
  if unit == "answer":
    return None if problem.answer else "no_answer"
  if not problem.solution:
    return "empty_solution"
  if unit == "steps":
    return {0: "no_steps", 1: "single_step"}.get(len(solutions.split_steps(problem.solution)))
  return None
