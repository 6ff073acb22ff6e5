"""python -m srl_jax.teacher: problems -> expert solutions, from any OpenAI-compatible server.

  python -m srl_jax.teacher --server=http://localhost:8000 --model=NAME \\
      --problems=problems.jsonl --output=data/teacher
  python -m srl_jax.prepare --source=data/teacher/solutions.jsonl --output=data/mine \\
      --fields=problem=problem,solution=solution,answer=answer,id=id

requests numbered steps with titles, up to --attempts times a problem, until a solution is kept:
one that has the right final answer and splits into at least two steps. OUTPUT holds
attempts.jsonl, each answer with the reason why it was not kept, and solutions.jsonl, those kept.
The same command continues where it stopped. An API key is read from OPENAI_API_KEY only.
An answer that is no text is counted as bad_answer; a server that gives no chat completion at all
ends the command.
"""

import collections
import concurrent.futures
import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from srl_jax import command_line, folders, progress
from srl_jax.data import problems as problems_lib
from srl_jax.data import rows, solutions
from srl_jax.data.chat import BadAnswer, ChatServer
from srl_jax.data.data_config import Columns, DataConfig
from srl_jax.data.examples import ExampleKind
from srl_jax.data.problems import Problem
from srl_jax.data.thoughts import split_thoughts
from srl_jax.errors import UserError
from srl_jax.rewards.answers import answers_equal, extract_answer

flags = command_line.own_flags()
_SERVER = flags.DEFINE_string("server", None, "URL, with or without /v1 at its end.", required=True)
_MODEL = flags.DEFINE_string("model", None, "The model's name on the server.", required=True)
_PROBLEMS = flags.DEFINE_string("problems", None, "File of JSON lines.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to or to continue.", required=True)
_FIELDS = flags.DEFINE_list(
  "fields",
  ["problem=problem", "answer=answer"],
  "Columns of the problems: problem=, answer= and id=; the last may be left out.",
)
_ATTEMPTS = flags.DEFINE_integer("attempts", 4, "Most answers for each problem.", 1)
_PARALLEL = flags.DEFINE_integer("parallel", 16, "Requests at a time.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.7, "Of sampling.", 0.0)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 8192, "Of an answer.", 1)
_TIMEOUT = flags.DEFINE_float("timeout", 600.0, "Seconds to wait for an answer.", 0.0)

# Numbers and titles in the form that most teachers use by themselves; data.solutions reads it.
SYSTEM = (
  "You are an expert who writes model solutions for students. Solve the user's problem in numbered"
  " steps, each of which has a short title in bold and makes one logical move that can be followed"
  " without the steps after it. Write nothing before the first step. After the last step write the"
  " final answer on a line of its own, within \\boxed{}. The form is:\n\n"
  "1. **Title of the first step**: what is done and why\n\n"
  "2. **Title of the second step**: what is done and why\n\n"
  "Final answer: \\boxed{answer}"
)

# Of one request: text and finish reason, or what was wrong.
Answer = tuple[str, str] | BadAnswer
_ATTEMPT_KEYS = {"id", "problem", "model", "number", "text", "reason"}
_FOREIGN = 3  # first answers that are no chat completions, after which the server is left


def main(argv: list[str]) -> None:
  del argv
  problems = _read_problems()
  server = ChatServer(_SERVER.value, _MODEL.value, timeout=_TIMEOUT.value)
  output = pathlib.Path(_OUTPUT.value)
  with folders.locked(output):
    _make_attempts(server, problems, output)


def _make_attempts(server: ChatServer, problems: dict[str, Problem], output: pathlib.Path) -> None:
  """Makes the attempts that `output` lacks, writes what came out and prints the table."""
  path = output / "attempts.jsonl"
  made = _read_attempts(path, problems)
  line, number, done = None, 0, 0  # of the round: every unsolved problem gets its attempt `number`
  try:
    with path.open("a", encoding="utf-8") as file:
      for attempt in _attempts(server, problems, made):
        if attempt["number"] != number:
          number, done = attempt["number"], 0
          todo = len(problems) - len(_solved_or_tried(made, number))
          name = f"attempt {number} of {_ATTEMPTS.value}: answer"
          if line:  # the last round's; some of its attempts may have been given up
            line.end()
          line = progress.ProgressLine(todo, name=name, unit="answers")
        file.write(json.dumps(attempt, ensure_ascii=False) + "\n")
        file.flush()
        made.append(attempt)
        done += 1
        line.show(done, {"solved": f"{sum(not a['reason'] for a in made)}/{len(problems)}"})
  except KeyboardInterrupt:
    print(
      f"\nstopped; the same command continues from what {output} holds (Ctrl-C again: do not wait"
      " for the requests under way)",
      flush=True,
    )
    raise SystemExit(130) from None
  finally:  # after an error or Ctrl-C too: what is solved can be used
    if line:
      line.end()
    _write_solutions(output / "solutions.jsonl", problems, made)
  print(_table(problems, made))
  print(f"wrote {output}/solutions.jsonl and attempts.jsonl")


# ---------------------------------------------------------------------------------- problems


def _read_problems() -> dict[str, Problem]:
  """{id: problem} of the file; UserError for a row without a problem or a gold answer."""
  columns = {}
  for item in _FIELDS.value:
    field, _, column = item.partition("=")
    if field not in ("problem", "answer", "id") or not column:
      raise UserError(f"--fields: {item!r} is none of problem=COLUMN, answer=COLUMN, id=COLUMN")
    columns[field] = column
  data = DataConfig(source="jsonl", path=_PROBLEMS.value, fields=Columns(**columns))
  kind = ExampleKind(method="teacher", task="", unit="answer")  # the rows have no solutions yet
  problems, counts = problems_lib.read_problems(data, kind)
  for reason in sorted(counts.keys() - {"rows", "kept"}):
    print(f"{_PROBLEMS.value}: {counts[reason]} of {counts['rows']} rows left out: {reason}")
  return {problem.id: problem for problem in problems}


# ---------------------------------------------------------------------------------- attempts


def _read_attempts(path: pathlib.Path, problems: dict[str, Problem]) -> list[dict[str, Any]]:
  """The attempts of earlier runs; a last line that was cut off is removed from the file."""
  attempts = []
  if folders.cut_to_whole_lines(path):
    attempts = [row for _, row in rows.json_lines(path)]
  for attempt in attempts:
    if not attempt.keys() >= _ATTEMPT_KEYS:
      raise UserError(f"{path} holds a line that is no attempt: give another --output")
    if attempt["model"] != _MODEL.value:
      raise UserError(
        f"{path} holds answers of {attempt['model']!r}, not of {_MODEL.value!r}: give another"
        " --output"
      )
    problem = problems.get(attempt["id"])
    if not problem or problem.text != attempt["problem"]:
      raise UserError(
        f"{path} holds answers to a problem {attempt['id']!r} that {_PROBLEMS.value} does not have"
        " like that: give another --output"
      )
  return attempts


def _attempts(
  server: ChatServer, problems: dict[str, Problem], made: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
  """Yields the attempts that are still to be made, judged, in the order of the answers.

  All problems get their first one before any gets its second. `made` is read before each round, so
  the caller must add the attempts to it.
  """
  for number in range(1, _ATTEMPTS.value + 1):
    done = _solved_or_tried(made, number)
    todo = [problem for id, problem in problems.items() if id not in done]
    yield from _round(server, todo, number)


def _solved_or_tried(made: list[dict[str, Any]], number: int) -> set[str]:
  """The ids of the problems that are solved or had their attempt `number`."""
  done = set()
  for attempt in made:
    if not attempt["reason"] or attempt["number"] >= number:
      done.add(attempt["id"])
  return done


def _round(server: ChatServer, problems: list[Problem], number: int) -> Iterator[dict[str, Any]]:
  """Yields one attempt at each problem.

  Raises UserError for a request that the server refuses, and for a server whose first answers,
  _FOREIGN of them or all, are no chat completions.
  """
  understood, held = False, []  # attempts that count only if the server proves to be one
  with contextlib.closing(_answers(server, problems)) as answers:
    for problem, answer in answers:
      attempt = _attempt(problem, number, answer)
      if isinstance(answer, BadAnswer) and answer.foreign and not understood:
        held.append(attempt)
        if len(held) >= min(_FOREIGN, len(problems)):
          raise UserError(
            f"problem {problem.id}: {server.url}: {answer}; is it an OpenAI-compatible server?"
          )
        continue
      understood = True
      yield from [*held, attempt]
      held = []


def _answers(server: ChatServer, problems: list[Problem]) -> Iterator[tuple[Problem, Answer]]:
  """Yields each problem with its answer, as they arrive; raises what ended a request."""
  pool = concurrent.futures.ThreadPoolExecutor(_PARALLEL.value)
  try:
    requests = {pool.submit(_request, server, problem): problem for problem in problems}
    pending = set(requests)
    while pending:
      done, pending = concurrent.futures.wait(pending, return_when="FIRST_COMPLETED")
      fault = None
      for future in done:
        if future.exception():
          fault = fault or future.exception()
        else:  # answers cost money: those that arrive with a fault are kept, too
          yield requests[future], future.result()
      if fault:
        raise fault
  finally:  # an error or the user ends the run: no more requests are sent
    pool.shutdown(wait=False, cancel_futures=True)


def _attempt(problem: Problem, number: int, answer: Answer) -> dict[str, Any]:
  if isinstance(answer, BadAnswer):
    text, reason = "", "bad_answer"
  else:
    text, finish_reason = answer
    reason = judge(text, finish_reason, problem.answer, problem.text)
  return {
    "id": problem.id,
    "problem": problem.text,
    "model": _MODEL.value,
    "number": number,
    "text": text,
    "reason": reason,
  }


def _request(server: ChatServer, problem: Problem) -> Answer:
  messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": problem.text}]
  try:
    return server.chat(messages, temperature=_TEMPERATURE.value, max_tokens=_MAX_TOKENS.value)
  except BadAnswer as error:
    return error
  except ValueError as error:
    raise UserError(f"problem {problem.id}: {error}") from error


def judge(text: str, finish_reason: str, gold: str, problem: str) -> str | None:
  """Returns why a teacher's answer is of no use, or None if it is.

  The first reason that holds counts: cut_off, no_answer, wrong_answer, no_steps, single_step.

  Args:
    text: the answer; thoughts in think tags are ignored, also without the open tag.
    finish_reason: the server's; anything but "stop" means cut off.
    gold: the right final answer.
    problem: the question, which may list options.
  """
  if finish_reason != "stop":
    return "cut_off"
  _, solution = split_thoughts(text)
  answer = extract_answer(solution)
  if answer is None:
    return "no_answer"
  if not answers_equal(answer, gold, problem=problem):
    return "wrong_answer"
  return {0: "no_steps", 1: "single_step"}.get(len(solutions.split_steps(solution)))


# ---------------------------------------------------------------------------------- results


def _write_solutions(
  path: pathlib.Path, problems: dict[str, Problem], made: list[dict[str, Any]]
) -> None:
  """Writes the kept solutions in the order of the problems; the file is never half of it."""
  kept = {attempt["id"]: attempt for attempt in made if not attempt["reason"]}
  with folders.replacing(path) as file:
    for id, problem in problems.items():
      if id in kept:
        _, solution = split_thoughts(kept[id]["text"])
        line = {"id": id, "problem": problem.text, "answer": problem.answer, "solution": solution}
        file.write(json.dumps(line | {"model": kept[id]["model"]}, ensure_ascii=False) + "\n")


def _table(problems: dict[str, Problem], made: list[dict[str, Any]]) -> str:
  """Returns the counts of problems, solutions and answers as aligned text."""
  counts = collections.Counter(attempt["reason"] for attempt in made)
  lines = [("problems", len(problems)), ("solutions kept", counts[None]), ("answers", len(made))]
  for reason in sorted(counts.keys() - {None}):
    lines.append((f"  not kept: {reason}", counts[reason]))
  return command_line.two_columns(lines)


if __name__ == "__main__":
  command_line.run(main, flags.values)
