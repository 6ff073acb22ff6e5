"""Rewards of rollouts, by the task of their example.

srl       similarity of action and target, or the format penalty
one_step  similarity of all text outside the think blocks and the target, or the format penalty
rlvr      1 if the final answer outside the think blocks is right, else 0; no format term
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from srl_jax.data import prompts
from srl_jax.data.sources import StepExample
from srl_jax.errors import UserError
from srl_jax.rewards.answers import equal_pairs, extract_answer
from srl_jax.rewards.similarity import similarities


class Score(NamedTuple):
  """What became of one response.

  Attributes:
    reward: the number that the advantage is made of.
    failure: reason of `prompts.format_failure`, or None. For rlvr it never changes the reward and
      only "cut_off" is reported.
    action: what was compared: the stripped text outside the monologue (of a response without the
      format: all of it).
    monologue: the stripped text inside the think tags; several blocks are joined by newlines.
  """

  reward: float
  failure: str | None
  action: str
  monologue: str


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
    example: `task` selects the reward; `target`, or for rlvr `answer`, is what is compared with.
    texts: the responses.
    finish_reasons: the engine's, one per response; anything but "stop" means cut off.
    reward: the config's group: `autojunk` (bool) and `format_penalty` (float, usually -1.0).
    think_opened: the chat template opened the think block (`prompts.encode` says so).
    workers: processes that long texts' similarities may use.

  Raises:
    UserError: a task without a reward, or rlvr without a gold answer.
  """
  groups = [(example, texts, finish_reasons)]
  return score_groups(groups, reward=reward, think_opened=think_opened, workers=workers)[0]


def score_groups(
  groups: Sequence[tuple[StepExample, Sequence[str], Sequence[str]]],
  *,
  reward,
  think_opened: bool = False,
  workers: int = 0,
) -> list[list[Score]]:
  """Returns the scores of many groups; as `score_group` for each, but computed together.

  Args:
    groups: (example, texts, finish reasons).
    reward: as for `score_group`.
    think_opened: as for `score_group`.
    workers: processes that a large batch of similarities may use.

  Raises:
    UserError: as `score_group`.
  """
  parts = [
    (example, *_take_apart(example, text, reason, think_opened))
    for example, texts, reasons in groups
    for text, reason in zip(texts, reasons, strict=True)
  ]
  similar = iter(
    similarities(
      [(a, e.target.strip()) for e, failure, a, _ in parts if e.task != "rlvr" and not failure],
      autojunk=reward.autojunk,
      workers=workers,
    )
  )
  right = iter(
    equal_pairs(
      [(extract_answer(a), e.answer) for e, _, a, _ in parts if e.task == "rlvr"],
      [e.problem for e, *_ in parts if e.task == "rlvr"],
    )
  )
  scores = []
  for example, failure, action, monologue in parts:
    if example.task == "rlvr":
      value = float(next(right))
    else:
      value = reward.format_penalty if failure else next(similar)
    scores.append(Score(value, failure, action, monologue))
  rest = iter(scores)
  return [list(itertools.islice(rest, len(texts))) for _, texts, _ in groups]


def _take_apart(
  example: StepExample, text: str, finish_reason: str, think_opened: bool
) -> tuple[str | None, str, str]:
  """Format failure, action and monologue of one response, by the rules of its task."""
  if example.task == "srl":
    failure = prompts.format_failure(text, finish_reason, think_opened=think_opened)
  elif example.task == "one_step":
    failure = prompts.whole_format_failure(text, finish_reason, think_opened=think_opened)
  elif example.task == "rlvr":
    if example.answer is None:
      raise UserError(
        f"example {example.id} has no gold answer, which the task rlvr is scored by: name the"
        " source's answer column in data.fields, or leave such rows out"
      )
    failure = None if finish_reason == "stop" else "cut_off"
  else:
    raise UserError(f"example {example.id}: no reward for task {example.task!r}")
  action = prompts.outside_think_blocks(text, think_opened=think_opened)
  monologue = "\n".join(prompts.monologues(text, think_opened=think_opened))
  return failure, action, monologue
