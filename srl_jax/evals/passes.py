"""One pass over a benchmark: every problem is solved n times, graded and recorded.

A pass is called "greedy" or "sampled-k". In the benchmark's folder it leaves

  NAME.rollouts.jsonl   every response with its tokens, as it was sampled (evals.journal)
  NAME.jsonl            once all are there, a line for each problem: id, problem, gold, think_opened
                        (the prompt ends inside a think block), and samples: responses (one for
                        each turn), solution (what a reader sees), answer, right, ended, tokens
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Sequence

from srl_jax import folders
from srl_jax.data.rows import json_lines
from srl_jax.evals.journal import Journal
from srl_jax.evals.math_benchmarks import Graded, Solver, grade
from srl_jax.rollout.episodes import Episode, Question

GREEDY, SAMPLED, ROLLOUTS = "greedy", "sampled-", ".rollouts.jsonl"
_PASS = re.compile(rf"{GREEDY}|{SAMPLED}\d+")


def pass_name(samples: int) -> str:
  """The name of a pass with `samples` responses for each problem; 0: one by greedy decoding."""
  return f"{SAMPLED}{samples}" if samples else GREEDY


def is_complete(folder: pathlib.Path, questions: Sequence[Question], samples: int) -> bool:
  """Whether a benchmark's folder has the finished pass over exactly these problems."""
  path = folder / f"{pass_name(samples)}.jsonl"
  if not path.exists():
    return False
  return [row["id"] for _, row in json_lines(path)] == [question.id for question in questions]


def solve(
  solver: Solver,
  folder: pathlib.Path,
  questions: Sequence[Question],
  samples: int,
  temperature: float,
  progress: Callable[[str, int], None],
) -> None:
  """Runs a pass, or what is left of it.

  Args:
    solver: its engine samples.
    folder: the benchmark's.
    questions: the problems.
    samples: k responses for each problem, or 0 for one by greedy decoding.
    temperature: of the k.
    progress: called with the pass's name and its responses so far, replayed ones included.
  """
  name, n = pass_name(samples), max(1, samples)
  journal = Journal(solver.engine, folder / (name + ROLLOUTS), lambda count: progress(name, count))
  journaled = dataclasses.replace(solver, engine=journal)
  episodes = journaled.solve(questions, n, temperature if samples else 0.0)
  samples_of_all = list(map(_sample, episodes, grade(episodes)))
  # The file is there only when the pass is complete: `read` takes no half passes.
  with folders.replacing(folder / f"{name}.jsonl") as file:
    for i, question in enumerate(questions):
      line = {
        "id": question.id,
        "problem": question.problem,
        "gold": question.answer,
        "think_opened": solver.build_prompt(question.problem, ()).think_opened,
        "samples": samples_of_all[i * n : (i + 1) * n],  # episodes are in the questions' order
      }
      file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _sample(episode: Episode, graded: Graded) -> dict:
  return {
    "responses": episode.responses,
    "solution": episode.solution,
    "answer": graded.answer,
    "right": graded.right,
    "ended": episode.ended,
    "tokens": episode.tokens,
  }


def read(output: pathlib.Path) -> dict[str, dict[str, list[dict]]]:
  """{benchmark: {pass: its lines}} of the finished passes in the folder of an evaluation.

  Other files are left alone: the folder may be a run's workdir, which has rollouts/*.jsonl too.
  """
  found: dict[str, dict[str, list[dict]]] = {}
  for path in sorted(pathlib.Path(output).glob("*/*.jsonl")):
    if _PASS.fullmatch(path.stem):
      lines = [row for _, row in json_lines(path)]
      found.setdefault(path.parent.name, {})[path.stem] = lines
  return found
