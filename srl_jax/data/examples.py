"""Step examples for training, and whole problems held out for validation."""

import dataclasses
import hashlib
from collections.abc import Callable

from srl_jax.errors import UserError

# Counts of kept rows, which are no reasons for leaving out, and their wording in a summary.
REMARKS = {
  "further_solutions": "further solutions of a problem",
  "thoughts": "solutions with thoughts in them",
}


@dataclasses.dataclass(frozen=True)
class StepExample:
  """One training prompt and the target of its reward.

  Attributes:
    id: unique name of this example; for a step, problem_id + "/" + the step's number, and for a
      step of a problem's second solution problem_id + "#2/" + the number.
    problem_id: the problem that it is a part of; a problem is held out as a whole.
    task: name in srl_jax.tasks.TASKS; it selects the prompt and the reward.
    problem: the question.
    context: the solution so far, in order (empty: nothing yet).
    hint: title of the next step, or None; the target then leaves the title out.
    target: the expert's text: the next step, the whole solution, or, for supervised fine-tuning,
      the response to learn; empty where only the answer is compared.
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
  """The examples of a source, and how many of its rows were used.

  Attributes:
    train: examples to train on.
    validation: examples of the held-out problems.
    counts: "rows", "kept" (solutions or problems used), one count per reason for leaving out, and
      those of REMARKS.
  """

  train: list[StepExample]
  validation: list[StepExample]
  counts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class ExampleKind:
  """Which examples a method is trained on; tasks.examples.example_kind makes it from a config.

  Attributes:
    method: the config's method. Prepared folders carry its name.
    task: name that the examples get.
    unit: "steps": one example for each step of an expert's solution or run, with the step as the
      target; "solution": one for each problem, with the whole solution as the target; "answer": one
      for each problem that has a gold answer, without a target.
    needs: fields of a StepExample that must not be empty.
    supervised: targets are responses to learn, the expert's reasoning included where there is one.
    step_task: task of single steps among the built-in responses to learn (data.path="mix").
  """

  method: str
  task: str
  unit: str
  needs: tuple[str, ...] = ()
  supervised: bool = False
  step_task: str = ""


def normalized(text: str) -> str:
  """Returns a problem's text as it is compared with others: white space does not matter."""
  return " ".join(text.split())


def hold_out(
  examples: list[StepExample],
  counts: dict[str, int],
  holdout: int,
  seed: int,
  *,
  key: Callable[[str], str] = normalized,
) -> Examples:
  """Returns the examples with `holdout` whole problems set apart for validation.

  The choice is a pure function of the seed and the problems' ids. Problems with texts of the same
  key count as one.

  Raises UserError if `holdout` leaves no problem to train on.
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
  # Hashes of seed and id order the problems, so that the order of the rows does not matter.
  draw = sorted(ids.values(), key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest())
  held_out = set(draw[:holdout])
  train, validation = [], []
  for example in examples:
    side = validation if ids[key(example.problem)] in held_out else train
    side.append(example)
  return Examples(train, validation, counts=counts)
