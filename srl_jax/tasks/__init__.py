"""Tasks: each file defines one, with its prompt, response format and reward.

A config file may add a task to TASKS; its name is then a value of config.method.
"""

from srl_jax.errors import UserError
from srl_jax.tasks import one_step, rlvr, srl, swe
from srl_jax.tasks.task import (
  ParsedResponse,
  PromptSettings,
  RewardSettings,
  Score,
  Task,
  opens_think,
  system_prompt,
)

__all__ = [
  "TASKS",
  "ParsedResponse",
  "PromptSettings",
  "RewardSettings",
  "Score",
  "Task",
  "opens_think",
  "system_prompt",
]

TASKS: dict[str, Task] = {
  "srl": srl.TASK,
  "one_step": one_step.TASK,
  "rlvr": rlvr.TASK,
  "swe": swe.TASK,
}
# Supervised fine-tuning is a method but not a task: it learns `target` as the response to a task's
# prompt.
SUPERVISED = "sft"
# (method, data.domain) -> task. For every other pair, the method is the name of the task.
_TASK_OF = {
  ("srl", "swe"): "swe",
  (SUPERVISED, "swe"): "swe",
  (SUPERVISED, "math"): "one_step",
}
# Tasks for evaluation if a run's own task has prompts of the other form, see task_of_mode.
STEP_TASK, WHOLE_TASK = "srl", "rlvr"


def methods() -> list[str]:
  """Returns the values of config.method: all tasks but swe (selected by data.domain), and sft."""
  return [*(name for name in TASKS if name != "swe"), SUPERVISED]


def task_of(method: str, domain: str = "math", learn_steps: bool = False) -> str:
  """Returns the name of the task that a method trains on.

  Args:
    method, domain, learn_steps: config.method, config.data.domain, config.data.learn_steps.

  Raises:
    UserError: the method is unknown.
  """
  if method not in methods():
    raise UserError(f"method: {method!r} is unknown; use {' | '.join(methods())}")
  # learn_steps trains on single steps, with the prompt of SRL.
  if method == SUPERVISED and learn_steps and domain == "math":
    return STEP_TASK
  return _TASK_OF.get((method, domain), method)


def task_of_mode(mode: str, method: str = "") -> str:
  """Returns the name of the task that provides the prompt for solving whole problems.

  Args:
    mode: eval.mode; "stepwise" solves one step per response, any other mode all in one response.
    method: of the run that is evaluated; its own prompt is used if it has that form. "" for none.
  """
  by_steps = mode == "stepwise"
  task = _TASK_OF.get((method, "math"), method)
  # The run's own prompt is used if it has the form of the mode.
  if task in TASKS and (TASKS[task].unit == "steps") == by_steps:
    return task
  return STEP_TASK if by_steps else WHOLE_TASK
