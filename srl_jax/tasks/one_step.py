"""The whole solution, rewarded by its similarity to the expert's (paper, Table 3, One-step).

response  think blocks anywhere; the solution is all text outside them
reward    similarity of the solution and the target in [0, 1]; the format penalty if a block is
          not closed or nothing is outside the blocks
"""

from collections.abc import Sequence

from srl_jax.data.responses import whole_format_failure
from srl_jax.tasks import srl, task
from srl_jax.tasks.task import Task

# The system prompt of Qwen2.5-Math's evaluation, verbatim, because the paper follows its protocol.
PLAIN = "Please reason step by step, and put your final answer within \\boxed{}."
THINK = (
  "You help people solve mathematics problems. Write the complete solution as a sequence of"
  " numbered steps.\n"
  "Before each step think inside <think> and </think>, as freely and for as long as you need; then"
  " write that step, open the next think block, and go on until the problem is solved.\n"
  "Put the final answer within \\boxed{} in the last step."
)


def build_messages(
  problem: str, context: Sequence[str], hint: str | None, system: str
) -> list[dict[str, str]]:
  """Returns the messages of task.build_messages, with the form of a whole solution."""
  return task.build_messages(problem, context, hint, system, form="solution")


# Reward and drop reason are SRL's; prompt, format and unit differ.
TASK = Task(
  system={"plain": PLAIN, "think": THINK},
  build_messages=build_messages,
  format_failure=whole_format_failure,
  reward=srl.reward,
  drop_reason=srl.drop_reason,
  unit="solution",
  needs=("target",),
)
