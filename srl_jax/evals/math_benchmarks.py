r"""Benchmarks with final answers: loads their problems and measures how well a model solves them.

A row has its problem under `problem` or `question` and its gold answer under `answer`, or in the
last \boxed{} of its `solution`, or after "####" at its end (GSM8K).
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from srl_jax.data import arithmetic, rows
from srl_jax.data.gold import gold_answer
from srl_jax.errors import UserError
from srl_jax.policy.limits import check_positions
from srl_jax.policy.model import ModelConfig
from srl_jax.rewards.answers import equal_pairs, extract_answer, last_boxed
from srl_jax.rollout.engine import Engine, SamplingParams
from srl_jax.rollout.episodes import (
  Episode,
  PromptBuilder,
  Question,
  solve_stepwise,
  solve_whole,
)


class HubSet(NamedTuple):
  """A benchmark on the Hugging Face hub: `size` rows of a split, those with `url` in their url."""

  dataset: str
  split: str
  size: int
  url: str = ""


# Name -> source. Two data sets contain several years; `url` selects one. `size` is checked, because
# published figures depend on exactly these problems.
HUB = {
  "amc23": HubSet("AI-MO/aimo-validation-amc", "train", 40, "2023_AMC"),
  "aime24": HubSet("AI-MO/aimo-validation-aime", "train", 30, "2024_AIME"),
  "aime25": HubSet("math-ai/aime25", "test", 30),
  "minerva_math": HubSet("math-ai/minervamath", "test", 272),
  "math500": HubSet("HuggingFaceH4/MATH-500", "test", 500),
}

# ---------------------------------------------------------------------------------- problems


def benchmark_name(spec: str) -> str:
  """Returns the short name of a benchmark: of a file its stem, else the part before a colon."""
  is_file = rows.is_local(spec)
  return pathlib.Path(spec.removesuffix(".gz")).stem if is_file else spec.partition(":")[0]


def load_benchmark(spec: str, folder: str | pathlib.Path | None = None) -> list[Question]:
  """Returns a benchmark's problems.

  Args:
    spec: a name in HUB; a file of JSON lines; "arithmetic" or "arithmetic:N", the first N (200) of
      the built-in hard test problems.
    folder: contains NAME.jsonl for the names in HUB; by default they are loaded from the hub.

  Raises:
    UserError: the name is unknown, or rows are missing, malformed or without problem or answer.
  """
  name, _, count = spec.partition(":")
  # "arithmetic:0" and "arithmetic:x" are invalid and reported as unknown below.
  if name == "arithmetic" and (not count or count.isdigit() and int(count) > 0):
    problems = arithmetic.problems("test", int(count or 200))
    return [Question(problem.id, problem.text, problem.answer) for problem in problems]
  if spec not in HUB and rows.is_local(spec):
    return _questions(benchmark_name(spec), rows.local_rows(spec, "test"))
  if spec not in HUB:
    raise UserError(
      f"benchmark {spec!r} is unknown; use {', '.join(HUB)}, arithmetic, arithmetic:N or a file of"
      " JSON lines (NAME.jsonl)"
    )
  if folder:
    return _questions(spec, rows.json_lines(pathlib.Path(folder) / f"{spec}.jsonl"))
  source = HUB[spec]
  found = []
  for place, row in rows.hub_rows(source.dataset, source.split):
    # An empty `url` is in every text, and so selects all rows.
    if source.url in str(row.get("url", "")):
      found.append((place, row))
  questions = _questions(spec, found)
  if len(questions) != source.size:
    raise UserError(
      f"{source.dataset}[{source.split}]: {len(questions)} problems, but {spec} has {source.size}:"
      " the dataset has changed; give the problems as a file"
    )
  return questions


def _questions(name: str, found: Iterable[tuple[str, dict[str, Any]]]) -> list[Question]:
  """Returns the questions of rows; UserError for a row that is not usable or repeats an id."""
  questions, places = [], {}
  for number, (place, row) in enumerate(found):
    problem = row.get("problem") or row.get("question")
    if not isinstance(problem, str) or not problem.strip():
      raise UserError(f"{place}: no text under 'problem' or 'question'; it has {', '.join(row)}")
    id = f"{name}-{_id_in(row, number)}"
    if id in places:  # recorded responses are found by id, so ids must be unique
      raise UserError(f"{place}: the id {id!r} belongs to the problem of {places[id]} too")
    places[id] = place
    questions.append(Question(id, problem.strip(), _gold(place, row)))
  return questions


def _id_in(row: dict[str, Any], default: int) -> Any:
  """Returns a row's id under any of the usual names, else its number."""
  for key in ("id", "unique_id", "idx"):
    if row.get(key) is not None:
      return row[key]
  return default


def _gold(place: str, row: dict[str, Any]) -> str:
  """Returns a row's gold answer; UserError if there is none."""
  answer = row.get("answer")
  if answer is None or answer != answer:  # missing, or NaN
    solution = str(row.get("solution") or "")
    answer = last_boxed(solution) or (solution if "####" in solution else None)
  gold = None if isinstance(answer, bool | list | dict) else gold_answer(answer)
  if gold is None:
    raise UserError(
      f"{place}: no gold answer: neither 'answer' nor a \\boxed{{}} or '#### ...' in 'solution'"
    )
  return gold


# ---------------------------------------------------------------------------------- solving


@dataclasses.dataclass(frozen=True)
class Solver:
  """How problems are solved.

  Attributes:
    engine: samples responses.
    build_prompt: from rollout.episodes.prompt_builder for tasks.task_of_mode(mode).
    mode: "whole" or "stepwise".
    params: limits and seed; `solve` replaces the temperature.
    max_turns: limit of a stepwise episode.
    max_prompt_tokens: limit of a stepwise episode's prompt, which grows with each step.
  """

  engine: Engine
  build_prompt: PromptBuilder
  mode: str
  params: SamplingParams
  max_turns: int
  max_prompt_tokens: int

  def solve(self, questions: Sequence[Question], n: int, temperature: float) -> list[Episode]:
    """Returns n episodes per question; those of question i are at indices i n to (i + 1) n - 1."""
    params = dataclasses.replace(self.params, temperature=temperature)
    if self.mode == "whole":
      return solve_whole(self.engine, self.build_prompt, questions, n, params)
    limits = dict(max_turns=self.max_turns, max_prompt_tokens=self.max_prompt_tokens)
    return solve_stepwise(self.engine, self.build_prompt, questions, n, params, **limits)

  def accuracy(self, questions: Sequence[Question]) -> float:
    """Returns the share of questions that greedy decoding solves."""
    return float(np.mean(right(self.solve(questions, 1, 0.0))))


def check_lengths(
  model: ModelConfig,
  name: str,
  build_prompt: PromptBuilder,
  questions: Iterable[Question],
  *,
  mode: str,
  max_tokens: int,
  max_prompt_tokens: int,
) -> None:
  """Raises UserError, with values that fit, if prompts and responses exceed the model's positions.

  Args:
    model: its architecture.
    name: the model's name for the message.
    build_prompt: as in Solver.
    questions: whole solutions: the lengths of their prompts are measured.
    mode: as in Solver.
    max_tokens: limit of a response.
    max_prompt_tokens: as in Solver.
  """
  responses = {"--max_tokens": max_tokens}
  if mode == "stepwise":
    check_positions(model, name, ("--max_prompt_tokens", max_prompt_tokens), responses)
    return
  # A stepwise prompt may grow to its limit; prompts for whole solutions have a fixed length.
  longest = max(len(build_prompt(question.problem, ()).token_ids) for question in questions)
  prompt = ("the longest prompt", longest)
  check_positions(model, name, prompt, responses, prompt_is_setting=False)


class Graded(NamedTuple):
  """An episode's final answer (None if it has none) and whether it is correct."""

  answer: str | None
  right: bool


def grade(episodes: Sequence[Episode]) -> list[Graded]:
  """Returns the graded final answers of episodes, in their order.

  A stepwise episode has an answer only if it ended with a box: otherwise the last number in its
  text would be that of some step.
  """
  pairs, problems = [], []
  for episode in episodes:
    answer = None
    # "cut_off" is a truncated whole solution, which may have stated its answer already.
    if episode.ended in ("whole", "cut_off", "boxed"):
      answer = extract_answer(episode.solution)
    pairs.append((answer, episode.question.answer))
    problems.append(episode.question.problem)
  # One call for all pairs, so that the comparisons by sympy run in parallel.
  verdicts = equal_pairs(pairs, problems)
  return [Graded(answer, is_right) for (answer, _), is_right in zip(pairs, verdicts)]


def right(episodes: Sequence[Episode]) -> list[bool]:
  """Returns whether each episode's final answer is correct."""
  return [graded.right for graded in grade(episodes)]


def measure(solver: Solver, questions: Sequence[Question], samples: int) -> dict[str, float]:
  """Returns {greedy, avg_at_k, pass_at_k} in [0, 1]; k = samples, drawn at temperature 1."""
  solved = right(solver.solve(questions, samples, 1.0))
  # Episodes are ordered by question, then by sample.
  solved_nk = np.array(solved).reshape(len(questions), samples)
  return {
    "greedy": solver.accuracy(questions),
    f"avg_at_{samples}": float(solved_nk.mean()),
    f"pass_at_{samples}": float(solved_nk.any(axis=1).mean()),
  }
