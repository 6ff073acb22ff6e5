"""Benchmarks with final answers: accuracy of greedy decoding, avg@k and pass@k."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srl_jax.data import arithmetic
from srl_jax.rewards.answers import equal_pairs, extract_answer
from srl_jax.rollout.engine import Engine, SamplingParams
from srl_jax.rollout.episodes import Ask, Episode, Task, solve_stepwise, solve_whole

MODES = ("whole", "stepwise")


@dataclasses.dataclass(frozen=True)
class Solver:
  """How problems are solved.

  Fields: engine; ask, see rollout.episodes.asker (for task "srl" where mode is stepwise); mode,
  whole or stepwise; params, of which the temperature is replaced; max_turns and max_prompt_tokens
  bound a stepwise episode.
  """

  engine: Engine
  ask: Ask
  mode: str
  params: SamplingParams
  max_turns: int
  max_prompt_tokens: int

  def solve(self, tasks: Sequence[Task], n: int, temperature: float) -> list[Episode]:
    """n episodes for each task, in the order of the tasks."""
    params = dataclasses.replace(self.params, temperature=temperature)
    if self.mode == "whole":
      return solve_whole(self.engine, self.ask, tasks, n, params)
    limits = dict(max_turns=self.max_turns, max_prompt_tokens=self.max_prompt_tokens)
    return solve_stepwise(self.engine, self.ask, tasks, n, params, **limits)


def load_benchmark(name: str) -> list[Task]:
  """A benchmark's problems: "arithmetic" or "arithmetic:N" are the built-in hard test problems."""
  family, _, count = name.partition(":")
  if family != "arithmetic" or (count and not count.isdigit()):
    raise ValueError(f"benchmark {name!r} is unknown; use arithmetic or arithmetic:N")
  problems = arithmetic.problems("test", int(count or 200))
  return [Task(problem.id, problem.text, problem.answer) for problem in problems]


def right(episodes: Sequence[Episode]) -> list[bool]:
  """Whether each episode's final answer is right."""
  return equal_pairs([(extract_answer(e.solution), e.task.answer) for e in episodes])


def accuracy(solver: Solver, tasks: Sequence[Task]) -> float:
  """Share of problems solved by greedy decoding."""
  return float(np.mean(right(solver.solve(tasks, 1, 0.0))))


def measure(solver: Solver, tasks: Sequence[Task], samples: int) -> dict[str, float]:
  """{greedy, avg_at_k, pass_at_k} in [0, 1]; k = samples, drawn at temperature 1."""
  solved_nk = np.array(right(solver.solve(tasks, samples, 1.0))).reshape(len(tasks), samples)
  return {
    "greedy": accuracy(solver, tasks),
    f"avg_at_{samples}": float(solved_nk.mean()),
    f"pass_at_{samples}": float(solved_nk.any(axis=1).mean()),
  }
