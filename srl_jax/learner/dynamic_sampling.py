"""Dynamic sampling: draw, sample and filter until the batch is full (paper, 4.2).

A group teaches only by how its rewards differ, so it is kept if their population standard deviation
exceeds epsilon. For 0/1 rewards that is the rule of DAPO: not all right, not all wrong.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from srl_jax.data.batches import PromptQueue
from srl_jax.data.sources import StepExample
from srl_jax.rollout.engine import Prompt, Rollout
from srl_jax.tasks import Score

Ticket = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Group:
  """The rollouts of one prompt and what became of them.

  Fields: ticket, of the prompt in the queue; example, prompt; rollouts and their scores; dropped,
  why it is not trained on (low_std, all_failed, all_right, all_wrong, surplus), or None.
  """

  ticket: Ticket
  example: StepExample
  prompt: Prompt
  rollouts: list[Rollout]
  scores: list[Score]
  dropped: str | None = None

  @property
  def rewards(self) -> list[float]:
    return [score.reward for score in self.scores]


@dataclasses.dataclass(frozen=True)
class Batch:
  """What a step trains on (`kept`), all groups that were sampled for it, and the rounds it took."""

  kept: list[Group]
  groups: list[Group]
  rounds: int


def spread(rewards: Sequence[float]) -> float:
  """Population standard deviation; exactly 0 for equal rewards, whatever their mean rounds to."""
  if min(rewards) == max(rewards):
    return 0.0
  mean = math.fsum(rewards) / len(rewards)
  return math.dist(rewards, [mean] * len(rewards)) / math.sqrt(len(rewards))


def why_dropped(group: Group, std_epsilon: float) -> str | None:
  """The reason not to train on a group, or None to keep it."""
  if spread(group.rewards) > std_epsilon:
    return None
  if group.example.task == "rlvr":
    return "all_right" if np.mean(group.rewards) > 0.5 else "all_wrong"
  return "all_failed" if all(score.failure for score in group.scores) else "low_std"


def fill_batch(
  queue: PromptQueue,
  sample: Callable[[Sequence[Ticket]], list[Group]],
  *,
  size: int,
  std_epsilon: float,
  max_rounds: int,
) -> Batch:
  """Fills a batch of `size` groups.

  Each round draws as many prompts as the share kept so far says are needed, at most `size`. Kept
  groups beyond `size` are surplus: their prompts go back to the head of the queue. Their rollouts
  are not used again: in the next batch they would be older by one version than rollout.lag allows,
  whatever the lag is, because every batch is sampled with the newest weights that it may have.

  Args:
    queue: where prompts are drawn from.
    sample: tickets -> their groups in the same order, sampled and scored.
    size: groups wanted.
    std_epsilon: see why_dropped; negative keeps every group (no dynamic sampling).
    max_rounds: rounds after which the batch is taken as it is.

  Returns:
    Batch; kept may have fewer than `size` groups, or none, when the rounds did not fill it.
  """
  kept, groups, rounds = [], [], 0
  while len(kept) < size and rounds < max_rounds:
    share = max(len(kept) / len(groups), 1 / size) if groups else 1.0
    wanted = min(size, math.ceil((size - len(kept)) / share))
    rounds += 1
    for group in sample(queue.take(wanted)):
      reason = why_dropped(group, std_epsilon)
      if reason is None and len(kept) == size:
        reason = "surplus"
      group = dataclasses.replace(group, dropped=reason)
      groups.append(group)
      if reason is None:
        kept.append(group)
  queue.put_back([group.ticket for group in groups if group.dropped == "surplus"])
  return Batch(kept, groups, rounds)
