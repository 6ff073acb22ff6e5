"""Tasks: each has a prompt, a format of responses, and a reward.

One file a task. A config file may add its own to TASKS; its name is then a method of the config.
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
# Supervised fine-tuning is a method and no task: it learns `target` in reply to a task's prompt.
SUPERVISED = "sft"
# (method, data.domain) -> task; every other method is the task of its name.
_TASK_OF = {
  ("srl", "swe"): "swe",
  (SUPERVISED, "swe"): "swe",
  (SUPERVISED, "math"): "one_step",
}
# Tasks for evaluation, where a run's own task has prompts of the other form.
STEP_TASK, WHOLE_TASK = "srl", "rlvr"


def methods() -> list[str]:
  """Returns the values of config.method: all tasks but swe (a data.domain), and sft."""
  return [*(name for name in TASKS if name != "swe"), SUPERVISED]


def task_of(method: str, domain: str = "math", learn_steps: bool = False) -> str:
  """Returns the name of the task that a method trains on; UserError for an unknown one.

  Args:
    method, domain, learn_steps: config.method, config.data.domain, config.data.learn_steps.
  """
  if method not in methods():
    raise UserError(f"method: {method!r} is unknown; use {' | '.join(methods())}")
  if method == SUPERVISED and learn_steps and domain == "math":
    return STEP_TASK
  return _TASK_OF.get((method, domain), method)


def task_of_mode(mode: str, method: str = "") -> str:
  """Returns the name of the task that has the prompt for solving whole problems.

  Args:
    mode: eval.mode; stepwise solves one step at a time, any other in one response.
    method: of the run that is evaluated; its own prompt is used if it has that form. "": no run.
  """
  by_steps = mode == "stepwise"
  task = _TASK_OF.get((method, "math"), method)
  if task in TASKS and (TASKS[task].unit == "steps") == by_steps:
    return task
  return STEP_TASK if by_steps else WHOLE_TASK
