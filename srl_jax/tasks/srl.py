"""The next step of a solution, rewarded by its similarity to the expert's step (paper, 4.2).

response  one think block, then the step
reward    similarity of the step and the target in [0, 1]; the format penalty for any other form
"""

from collections.abc import Sequence

from srl_jax.data.responses import format_failure
from srl_jax.errors import UserError
from srl_jax.rewards import BUILT_IN, SIMILARITIES
from srl_jax.tasks.task import ParsedResponse, RewardSettings, Score, Task, build_messages

# The paper's system prompt (Appendix B), paraphrased.
SYSTEM = (
  "You help people solve mathematics problems. The user gives you a problem and, in most cases, a"
  " partial solution. Continue it with the very next logical step.\n"
  "First think inside <think> and </think>. Treat that space as scratch paper: explore, calculate,"
  " doubt and correct yourself as freely and for as long as you need.\n"
  "After </think> write the next step of the solution and nothing else: one step, in the style of"
  " the steps before it, and not the rest of the solution. If the title of that step is given,"
  " write what comes after the title.\n"
  "Your answer always has this form:\n"
  "<think>\n"
  "your thoughts\n"
  "</think>\n"
  "the next step"
)

EXAMPLE = (
  "An example. The problem: A shop sells pens in boxes of 12 for 9 dollars. What do 60 pens cost?"
  " The partial solution: 1. **Count the boxes**: 60 pens are 60 / 12 = 5 boxes. The answer:\n"
  "<think>\n"
  "The boxes are counted: 5. Each costs 9 dollars, so I need 5 times 9. That is 45. Is anything"
  " left over? 5 * 12 = 60, so no pen is missing.\n"
  "</think>\n"
  "2. **Multiply by the price**: 5 boxes at 9 dollars cost 5 * 9 = 45 dollars."
)


def reward(responses: Sequence[ParsedResponse], settings: RewardSettings) -> list[float]:
  """Returns the similarity of each action to its target; the penalty for a malformed response."""
  # The penalty is the default; well-formed responses are compared in one batch and overwrite it.
  rewards = [settings.format_penalty] * len(responses)
  well_formed, pairs = [], []
  for i, response in enumerate(responses):
    if not response.failure:
      well_formed.append(i)
      # The action is stripped already; white space around the target must not count either.
      pairs.append((response.action, response.example.target.strip()))
  for i, value in zip(well_formed, _similarities(pairs, settings)):
    rewards[i] = value
  return rewards


def _similarities(pairs: list[tuple[str, str]], settings: RewardSettings) -> Sequence[float]:
  """Returns the similarity of each (action, target), by the function that the config names."""
  measure = SIMILARITIES[settings.similarity]
  if measure in BUILT_IN:  # a user's function takes the pairs alone
    return measure(pairs, autojunk=settings.autojunk, workers=settings.workers)
  values = measure(pairs)
  if len(values) != len(pairs):
    raise UserError(
      f"reward.similarity={settings.similarity!r} returned {len(values)} numbers for {len(pairs)}"
      " pairs: return one for each"
    )
  return values


def drop_reason(scores: Sequence[Score]) -> str:
  """Returns "all_failed" if every response of the group is malformed, else "low_std"."""
  return "all_failed" if all(score.failure for score in scores) else "low_std"


TASK = Task(
  system=SYSTEM,
  build_messages=build_messages,
  format_failure=format_failure,
  reward=reward,
  drop_reason=drop_reason,
  unit="steps",
  needs=("target",),
  example=EXAMPLE,
)
