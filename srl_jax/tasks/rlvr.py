"""The whole solution, rewarded by its final answer alone (paper, Table 1, RL(VR)).

response  think blocks anywhere
reward    1 if the boxed answer outside the blocks is right, else 0; no format term
"""

from collections.abc import Sequence

from srl_jax.errors import UserError
from srl_jax.rewards.answers import equal_pairs, extract_answer
from srl_jax.tasks import one_step
from srl_jax.tasks.task import ParsedResponse, RewardSettings, Score, Task


def format_failure(text: str, finish_reason: str, *, think_opened: bool = False) -> str | None:
  """Returns "cut_off" for a truncated response, else None. The reward does not depend on it."""
  del text, think_opened
  return None if finish_reason == "stop" else "cut_off"


def reward(responses: Sequence[ParsedResponse], settings: RewardSettings) -> list[float]:
  """Returns 1.0 for each correct final answer, else 0.0; UserError without a gold answer."""
  del settings
  pairs, problems = [], []
  for response in responses:
    if response.example.answer is None:
      raise UserError(
        f"example {response.example.id} has no gold answer to compare final answers with: name the"
        " source's answer column in data.fields, or drop such rows"
      )
    # Truncated responses are graded too: they may have stated their answer already.
    pairs.append((extract_answer(response.action), response.example.answer))
    problems.append(response.example.problem)
  # All responses of the batch at once, so that sympy's workers run in parallel.
  return list(map(float, equal_pairs(pairs, problems)))


def drop_reason(scores: Sequence[Score]) -> str:
  """Returns "all_right" or "all_wrong", the groups that DAPO's dynamic sampling drops."""
  right = sum(score.reward for score in scores)
  # Rewards of a dropped group are all equal; 0.5 separates 0 from 1.
  return "all_right" if right > 0.5 * len(scores) else "all_wrong"


# Prompts are one_step's, so that both methods are evaluated alike.
TASK = Task(
  system=one_step.TASK.system,
  build_messages=one_step.build_messages,
  format_failure=format_failure,
  reward=reward,
  drop_reason=drop_reason,
  unit="answer",
  needs=("answer",),
)
