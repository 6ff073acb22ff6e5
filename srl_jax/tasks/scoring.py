"""Computes the rewards of sampled responses, by the task of their example."""

import math
from collections.abc import Sequence

from srl_jax.data.examples import StepExample
from srl_jax.data.responses import monologues, outside_think_blocks
from srl_jax.errors import UserError
from srl_jax.tasks import TASKS
from srl_jax.tasks.task import ParsedResponse, RewardSettings, Score, Task

# (example, texts of its responses, finish reasons).
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
    example: its `task` selects the reward.
    texts: the responses.
    finish_reasons: the engine's, one per response; anything but "stop" means truncated.
    reward: the config's group `reward`.
    think_opened: whether the prompt ended inside a think block (data.tokenizer.EncodedPrompt).
    workers: number of processes for a large batch of similarities; 0 for none.

  Raises:
    UserError: the task is unknown, the example lacks a field that it needs, or a user's reward does
      not return one finite number per response.
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
  """Returns the scores of many groups, computed in one batch per task.

  Args:
    groups: (example, texts, finish reasons).
    reward, think_opened, workers: as for `score_group`.

  Returns:
    scores[i][j] belongs to response j of group i.

  Raises:
    UserError: as `score_group`.
  """
  settings = RewardSettings(
    similarity=reward.similarity,
    autojunk=reward.autojunk,
    format_penalty=reward.format_penalty,
    workers=workers,
  )
  # responses[i][j] is response j of group i.
  responses = [_parse(*group, think_opened=think_opened) for group in groups]
  groups_of_task: dict[str, list[int]] = {}
  for i, (example, _, _) in enumerate(groups):
    groups_of_task.setdefault(example.task, []).append(i)
  scores: list[list[Score]] = [[] for _ in groups]
  # One call per task with the responses of all its groups: a reward sees the whole batch at once,
  # so that similarities and answers can be computed in parallel.
  for name, indices in groups_of_task.items():
    flat = []
    for i in indices:
      flat += responses[i]
    # `flat` is in the order of the loop below, so the iterator deals the rewards back out.
    rewards = iter(_rewards(name, flat, settings))
    for i in indices:
      for response in responses[i]:
        score = Score(next(rewards), response.failure, response.action, response.monologue)
        scores[i].append(score)
  return scores


def _parse(
  example: StepExample,
  texts: Sequence[str],
  finish_reasons: Sequence[str],
  *,
  think_opened: bool,
) -> list[ParsedResponse]:
  """Returns each response split into monologue and action, with its format checked."""
  task = _task(example)
  responses = []
  for text, reason in zip(texts, finish_reasons, strict=True):
    responses.append(
      ParsedResponse(
        example=example,
        action=outside_think_blocks(text, think_opened=think_opened),
        monologue="\n".join(monologues(text, think_opened=think_opened)),
        failure=task.format_failure(text, reason, think_opened=think_opened),
      )
    )
  return responses


def _task(example: StepExample) -> Task:
  """Returns the task of an example; UserError if it is unknown."""
  if example.task not in TASKS:
    raise UserError(
      f"example {example.id} has the unknown task {example.task!r}: use {', '.join(TASKS)}"
    )
  return TASKS[example.task]


def _rewards(name: str, responses: list[ParsedResponse], settings: RewardSettings) -> list[float]:
  """Returns the rewards of one task's responses, checked: the function may be a user's own."""
  values = list(map(float, TASKS[name].reward(responses, settings)))
  if len(values) != len(responses):
    raise UserError(
      f"the reward of the task {name!r} returned {len(values)} numbers for {len(responses)}"
      " responses: return one for each, in order"
    )
  # A NaN would turn all weights into NaN at the next update.
  for value in values:
    if not math.isfinite(value):
      raise UserError(f"the reward of the task {name!r} returned {value}: return finite numbers")
  return values
