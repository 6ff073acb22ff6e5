"""Dynamic sampling: draw, sample and filter until the batch is full (paper, 4.2).

Only differences among a group's rewards teach the policy, so a group is kept if their population
standard deviation exceeds epsilon. For 0/1 rewards this is DAPO's rule: not all right, not all
wrong.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from srl_jax.data.examples import StepExample
from srl_jax.rewards.spread import population_std
from srl_jax.rollout.engine import Prompt, Rollout
from srl_jax.tasks import TASKS, Score

MARGIN = 1.28  # standard deviations: a normal variable is above -1.28 in nine of ten cases

# A prompt in the queue: (epoch, index of the example), see data.batches.PromptQueue.
Ticket = tuple[int, int]


# A response without its text and token ids, as processes exchange it: its reward, why it is
# malformed (UTF-8, empty if it is not), its tokens, whether it was truncated, and the words of its
# monologue and action.
NUMBERS = np.dtype(
  [
    ("reward", np.float64),
    ("failure", "S48"),
    ("tokens", np.int32),
    ("truncated", np.bool_),
    ("monologue_words", np.int32),
    ("action_words", np.int32),
  ]
)


def numbers_of(rollouts: Sequence[Rollout], scores: Sequence[Score]) -> np.ndarray:
  """NUMBERS [g] of the responses to a prompt."""
  numbers = np.zeros(len(scores), NUMBERS)
  for i, (rollout, score) in enumerate(zip(rollouts, scores)):
    failure = (score.failure or "").encode()
    truncated = rollout.finish_reason != "stop"
    words = len(score.monologue.split()), len(score.action.split())
    numbers[i] = score.reward, failure, len(rollout.token_ids), truncated, *words
  return numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
  """The responses to one prompt. Texts and token ids stay on the process that sampled them.

  Fields: ticket, of the prompt in the queue; example, prompt; numbers, NUMBERS of each response;
  process, that has the rollouts and their scores, which are None on all others; dropped, why the
  group is not trained on (low_std, all_failed, all_right, all_wrong, surplus), or None.
  """

  ticket: Ticket
  example: StepExample
  prompt: Prompt
  numbers: np.ndarray
  process: int = 0
  rollouts: list[Rollout] | None = None
  scores: list[Score] | None = None
  dropped: str | None = None

  @property
  def rewards(self) -> list[float]:
    return self.numbers["reward"].tolist()

  @property
  def failures(self) -> list[str | None]:
    """Why each response is malformed; None if it is not."""
    return [failure.decode(errors="ignore") or None for failure in self.numbers["failure"].tolist()]


@dataclasses.dataclass(frozen=True)
class Batch:
  """The groups that a step trains on, all groups that were sampled for it, and their cost.

  Fields: kept; groups, the kept ones included; rounds of sampling; seconds_reward, of scoring.
  """

  kept: list[Group] = dataclasses.field(default_factory=list)
  groups: list[Group] = dataclasses.field(default_factory=list)
  rounds: int = 0
  seconds_reward: float = 0.0


def why_dropped(group: Group, std_epsilon: float) -> str | None:
  """The reason not to train on a group, or None to keep it."""
  if population_std(group.rewards) > std_epsilon:
    return None
  scores = [
    Score(reward, failure, "", "") for reward, failure in zip(group.rewards, group.failures)
  ]
  return TASKS[group.example.task].drop_reason(scores)


def draw_size(batch: Batch, size: int, share: float | None, max_rounds: int) -> int:
  """Returns how many prompts the next round draws, to fill the batch in nine of ten cases.

  If each of N prompts is kept with probability p, in nine of ten cases at least
  N p - MARGIN sqrt(N p (1 - p)) are. N is the least number for which this is what is still needed.

  Args:
    batch: the rounds before.
    size: groups wanted.
    share: p by earlier batches, PromptQueue.kept; None: every prompt is expected to be kept.
    max_rounds: of a batch, which draws at most size x max_rounds prompts.

  Returns 0 for a batch that is full or may draw no more.
  """
  needed = size - len(batch.kept)
  if needed == 0 or batch.rounds == max_rounds:
    return 0
  p = 1.0 if share is None else share
  if batch.groups:
    # Mean of this batch's share and that of earlier batches, which count as one full round.
    earlier = 0 if share is None else size
    drawn = len(batch.groups)
    p = (kept_share(batch) * drawn + p * earlier) / (drawn + earlier)
  # With a share of 0 no number of prompts would be enough.
  p = max(p, 1 / size)
  spread = MARGIN * math.sqrt(p * (1 - p))
  # p x^2 - spread x - needed = 0 for x = sqrt(N).
  root = (spread + math.sqrt(spread**2 + 4 * p * needed)) / (2 * p)
  # 1e-9: at p = 1 the root is exactly sqrt(needed), and rounding must not add a prompt.
  return min(math.ceil(root**2 - 1e-9), size * max_rounds - len(batch.groups))


def kept_share(batch: Batch) -> float:
  """The share of groups that are worth training on, the surplus included; needs at least one."""
  kept = sum(group.dropped in (None, "surplus") for group in batch.groups)
  return kept / len(batch.groups)


def surplus_tickets(batch: Batch) -> list[Ticket]:
  """The tickets of the surplus groups, which go back to the head of the queue."""
  return [group.ticket for group in batch.groups if group.dropped == "surplus"]


def add_round(batch: Batch, sampled: Sequence[Group], size: int, std_epsilon: float) -> Batch:
  """The batch with the groups of another round, each kept or marked with why it is dropped.

  Kept groups beyond `size` are surplus. Their rollouts are not used again: in the next step they
  would be off-policy by one version more than rollout.lag allows.

  Args:
    batch: the rounds before.
    sampled: groups in the order of their prompts.
    size: groups wanted.
    std_epsilon: see why_dropped; negative keeps every group (no dynamic sampling).
  """
  kept, groups = list(batch.kept), list(batch.groups)
  # In the order of the prompts, so which groups are surplus does not depend on timing.
  for group in sampled:
    reason = why_dropped(group, std_epsilon)
    if reason is None and len(kept) == size:
      reason = "surplus"
    group = dataclasses.replace(group, dropped=reason)
    groups.append(group)
    if reason is None:
      kept.append(group)
  return dataclasses.replace(batch, kept=kept, groups=groups, rounds=batch.rounds + 1)
