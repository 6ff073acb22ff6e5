"""Training examples, and the split that holds out whole problems for validation."""

import dataclasses
import hashlib
from collections.abc import Callable

from srl_jax.errors import UserError

# Keys of `Examples.counts` that describe kept rows instead of a reason for dropping one, with their
# wording in prepare's summary.
REMARKS = {
  "further_solutions": "further solutions of a problem",
  "thoughts": "solutions with thoughts in them",
}


@dataclasses.dataclass(frozen=True)
class StepExample:
  """One training prompt and the target of its reward.

  Attributes:
    id: unique name of this example: `problem_id/k` for step k, `problem_id#2/k` for step k of a
      problem's second solution, `problem_id` for a whole solution.
    problem_id: the problem it belongs to; a problem is held out as a whole.
    task: name in srl_jax.tasks.TASKS; it selects the prompt and the reward.
    problem: the question.
    context: the expert's earlier steps in order; empty before the first step.
    hint: title of the next step, or None. With a hint the target does not repeat the title.
    target: the expert's text: the next step, the whole solution, or, for supervised fine-tuning,
      the response to learn; empty if only the final answer is compared.
    answer: gold final answer, or None if the source has none.
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
  """The examples of a source, with counts of the rows that were used and dropped.

  Attributes:
    train: examples to train on.
    validation: examples of the held-out problems.
    counts: "rows", "kept" (solutions or problems used), one count for each reason to drop a row,
      and the keys of REMARKS.
  """

  train: list[StepExample]
  validation: list[StepExample]
  counts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class ExampleKind:
  """The kind of examples that a method trains on; tasks.examples.example_kind derives it.

  Attributes:
    method: the config's method; summary.json of a prepared folder records it.
    task: task name of the examples.
    unit: "steps": one example for each step of an expert's solution or run, with the step as the
      target; "solution": one for each problem, with the whole solution as the target; "answer": one
      for each problem that has a gold answer, without a target.
    needs: fields of a StepExample that must not be empty.
    supervised: whether targets are responses to learn, including the expert's reasoning if given.
    step_task: task name of the single steps in the built-in warm-up data (data.path="mix").
  """

  method: str
  task: str
  unit: str
  needs: tuple[str, ...] = ()
  supervised: bool = False
  step_task: str = ""


def normalized(text: str) -> str:
  """Returns a problem's text with white space collapsed, the form in which texts are compared."""
  return " ".join(text.split())


def hold_out(
  examples: list[StepExample],
  counts: dict[str, int],
  holdout: int,
  seed: int,
  *,
  key: Callable[[str], str] = normalized,
) -> Examples:
  """Returns the examples split into training and validation, by whole problems.

  The choice is a pure function of the seed and the problems' ids.

  Args:
    examples: all examples of the source.
    counts: passed on to `Examples.counts`.
    holdout: number of problems to hold out.
    seed: of the choice.
    key: maps a problem's text to the key that identifies it. Problems with equal keys are held out
      together, so that no validation problem is trained on under another id.

  Raises:
    UserError: `holdout` is negative or leaves no problem to train on.
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
  # Sorting by a hash of seed and id shuffles the problems independently of the order of the rows.
  # A larger `holdout` only adds problems to the validation set.
  draw = sorted(ids.values(), key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest())
  held_out = set(draw[:holdout])
  train, validation = [], []
  for example in examples:
    side = validation if ids[key(example.problem)] in held_out else train
    side.append(example)
  return Examples(train, validation, counts=counts)
