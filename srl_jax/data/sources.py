"""Examples to train on: from a Hugging Face dataset, JSON lines, or the built-in family."""

import dataclasses


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
