"""Rewards of rollouts, by the task of their example."""

import math
from collections.abc import Sequence

from srl_jax.data.examples import StepExample
from srl_jax.data.responses import monologues, outside_think_blocks
from srl_jax.errors import UserError
from srl_jax.tasks import TASKS
from srl_jax.tasks.task import Answer, RewardSettings, Score, Task

Group = tuple[StepExample, Sequence[str], Sequence[str]]


def score_group(
  example: StepExample,
  texts: Sequence[str],
  finish_reasons: Sequence[str],
  *,
  reward,
  think_opened: bool = False,
  workers: int = 0,
) -> list[Score]:
  """Returns one score per response to an example.

  Args:
    example: `task` selects the reward.
    texts: the responses.
    finish_reasons: the engine's, one per response; anything but "stop" means cut off.
    reward: the config's group `reward`.
    think_opened: the chat template opened the think block (data.tokenizer.EncodedPrompt).
    workers: processes that a large batch of similarities may use; 0: none.

  Raises:
    UserError: an unknown task, an example without what its task needs, or a user's reward that
      does not return one number for each response.
  """
  groups = [(example, texts, finish_reasons)]
  return score_groups(groups, reward=reward, think_opened=think_opened, workers=workers)[0]


def score_groups(
  groups: Sequence[Group],
  *,
  reward,
  think_opened: bool = False,
  workers: int = 0,
) -> list[list[Score]]:
  """Returns the scores of many groups; as `score_group` for each, but computed together.

  Args:
    groups: (example, texts, finish reasons).
    reward, think_opened, workers: as for `score_group`.

  Raises:
    UserError: as `score_group`.
  """
  settings = RewardSettings(
    similarity=reward.similarity,
    autojunk=reward.autojunk,
    format_penalty=reward.format_penalty,
    workers=workers,
  )
  answers = [_answers(*group, think_opened=think_opened) for group in groups]
  groups_of_task: dict[str, list[int]] = {}
  for i, (example, _, _) in enumerate(groups):
    groups_of_task.setdefault(example.task, []).append(i)
  scores: list[list[Score]] = [[] for _ in groups]
  # All answers of a task at once, so that its similarities are computed together.
  for name, indices in groups_of_task.items():
    flat = []
    for i in indices:
      flat += answers[i]
    rewards = iter(_rewards(name, flat, settings))
    for i in indices:
      for answer in answers[i]:
        score = Score(next(rewards), answer.failure, answer.action, answer.monologue)
        scores[i].append(score)
  return scores


def _answers(
  example: StepExample,
  texts: Sequence[str],
  finish_reasons: Sequence[str],
  *,
  think_opened: bool,
) -> list[Answer]:
  """Splits each response to an example into monologue and action, and checks its format."""
  task = _task(example)
  answers = []
  for text, reason in zip(texts, finish_reasons, strict=True):
    answers.append(
      Answer(
        example=example,
        action=outside_think_blocks(text, think_opened=think_opened),
        monologue="\n".join(monologues(text, think_opened=think_opened)),
        failure=task.format_failure(text, reason, think_opened=think_opened),
      )
    )
  return answers


def _task(example: StepExample) -> Task:
  if example.task not in TASKS:
    raise UserError(
      f"example {example.id}: no reward for task {example.task!r}; use {', '.join(TASKS)}"
    )
  return TASKS[example.task]


def _rewards(name: str, answers: list[Answer], settings: RewardSettings) -> list[float]:
  """Returns the rewards of answers of one task. A user's own may be wrong, so they are checked."""
  # `float` also takes the numbers of numpy, and refuses what is no number.
  values = list(map(float, TASKS[name].reward(answers, settings)))
  if len(values) != len(answers):
    raise UserError(
      f"the reward of the task {name!r} returned {len(values)} numbers for {len(answers)} answers:"
      " return one for each, in order"
    )
  for value in values:
    if not math.isfinite(value):
      raise UserError(f"the reward of the task {name!r} returned {value}: return finite numbers")
  return values
