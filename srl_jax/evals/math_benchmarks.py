r"""Benchmarks with final answers: the problems, and how well a model solves them.

A row of a benchmark has its problem under `problem` or `question` and its gold answer under
`answer`, or in the last \boxed{} of its `solution`; of GSM8K's form, what follows "####" counts.
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


HUB = {
  "amc23": HubSet("AI-MO/aimo-validation-amc", "train", 40, "2023_AMC"),  # it has 2022, too
  "aime24": HubSet("AI-MO/aimo-validation-aime", "train", 30, "2024_AIME"),  # and 2022, 2023
  "aime25": HubSet("math-ai/aime25", "test", 30),
  "minerva_math": HubSet("math-ai/minervamath", "test", 272),
  "math500": HubSet("HuggingFaceH4/MATH-500", "test", 500),
}

# ---------------------------------------------------------------------------------- problems


def benchmark_name(spec: str) -> str:
  """The short name of what `load_benchmark` takes: a file's stem, else what is before a colon."""
  is_file = rows.is_local(spec)
  return pathlib.Path(spec.removesuffix(".gz")).stem if is_file else spec.partition(":")[0]


def load_benchmark(spec: str, folder: str | pathlib.Path | None = None) -> list[Question]:
  """Returns a benchmark's problems.

  Args:
    spec: a name in HUB; a file of JSON lines; "arithmetic" or "arithmetic:N", the first N (200) of
      the built-in hard test problems.
    folder: has NAME.jsonl of the names in HUB; by default they are loaded from the hub.

  Raises:
    UserError: an unknown name, or rows that are missing, broken or without problem or answer.
  """
  name, _, count = spec.partition(":")
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
    if source.url in str(row.get("url", "")):
      found.append((place, row))
  questions = _questions(spec, found)
  if len(questions) != source.size:
    raise UserError(
      f"{source.dataset}[{source.split}]: {len(questions)} problems where {spec} has {source.size}:"
      " the dataset has changed; give the problems as a file"
    )
  return questions


def _questions(name: str, found: Iterable[tuple[str, dict[str, Any]]]) -> list[Question]:
  questions, places = [], {}
  for number, (place, row) in enumerate(found):
    problem = row.get("problem") or row.get("question")
    if not isinstance(problem, str) or not problem.strip():
      raise UserError(f"{place}: no text under 'problem' or 'question'; it has {', '.join(row)}")
    id = f"{name}-{_id_in(row, number)}"
    if id in places:  # a pass's file and journal have the responses by id
      raise UserError(f"{place}: the id {id!r} already names the problem of {places[id]}")
    places[id] = place
    questions.append(Question(id, problem.strip(), _gold(place, row)))
  return questions


def _id_in(row: dict[str, Any], default: int) -> Any:
  for key in ("id", "unique_id", "idx"):
    if row.get(key) is not None:
      return row[key]
  return default


def _gold(place: str, row: dict[str, Any]) -> str:
  answer = row.get("answer")
  if answer is None or answer != answer:  # NaN
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

  Fields: engine; build_prompt, from rollout.episodes.prompt_builder for tasks.task_of_mode(mode);
  mode, whole or stepwise; params, of which the temperature is replaced; max_turns and
  max_prompt_tokens bound a stepwise episode.
  """

  engine: Engine
  build_prompt: PromptBuilder
  mode: str
  params: SamplingParams
  max_turns: int
  max_prompt_tokens: int

  def solve(self, questions: Sequence[Question], n: int, temperature: float) -> list[Episode]:
    """n episodes for each question, in the order of the questions."""
    params = dataclasses.replace(self.params, temperature=temperature)
    if self.mode == "whole":
      return solve_whole(self.engine, self.build_prompt, questions, n, params)
    limits = dict(max_turns=self.max_turns, max_prompt_tokens=self.max_prompt_tokens)
    return solve_stepwise(self.engine, self.build_prompt, questions, n, params, **limits)

  def accuracy(self, questions: Sequence[Question]) -> float:
    """Share of questions solved by greedy decoding."""
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
    model, name: its architecture, and its name for the message.
    build_prompt, mode, max_prompt_tokens: as in Solver.
    questions: to solve. For whole solutions their prompts are measured.
    max_tokens: of a response.
  """
  responses = {"--max_tokens": max_tokens}
  if mode == "stepwise":
    check_positions(model, name, ("--max_prompt_tokens", max_prompt_tokens), responses)
    return
  longest = max(len(build_prompt(question.problem, ()).token_ids) for question in questions)
  prompt = ("the longest prompt", longest)
  check_positions(model, name, prompt, responses, prompt_is_setting=False)


class Graded(NamedTuple):
  """An episode's final answer (None: it has none) and whether it is right."""

  answer: str | None
  right: bool


def grade(episodes: Sequence[Episode]) -> list[Graded]:
  """The final answers of episodes, in their order.

  A stepwise episode has one only if it came to a box: the numbers of steps are no answers.
  """
  pairs, problems = [], []
  for episode in episodes:
    answer = None
    if episode.ended in ("whole", "cut_off", "boxed"):
      answer = extract_answer(episode.solution)
    pairs.append((answer, episode.question.answer))
    problems.append(episode.question.problem)
  verdicts = equal_pairs(pairs, problems)
  return [Graded(answer, is_right) for (answer, _), is_right in zip(pairs, verdicts)]


def right(episodes: Sequence[Episode]) -> list[bool]:
  """Whether each episode's final answer is right."""
  return [graded.right for graded in grade(episodes)]


def measure(solver: Solver, questions: Sequence[Question], samples: int) -> dict[str, float]:
  """{greedy, avg_at_k, pass_at_k} in [0, 1]; k = samples, drawn at temperature 1."""
  solved = right(solver.solve(questions, samples, 1.0))
  solved_nk = np.array(solved).reshape(len(questions), samples)
  return {
    "greedy": solver.accuracy(questions),
    f"avg_at_{samples}": float(solved_nk.mean()),
    f"pass_at_{samples}": float(solved_nk.any(axis=1).mean()),
  }
