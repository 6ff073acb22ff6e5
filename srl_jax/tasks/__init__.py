"""Tasks: each has a prompt, a format of responses, and a reward.

One file a task. A config file may add its own to TASKS; its name is then a method of the config.
"""

from srl_jax.data import sources
from srl_jax.data.data_config import DataConfig
from srl_jax.data.examples import ExampleKind, Examples
from srl_jax.errors import UserError
from srl_jax.tasks import one_step, rlvr, srl, swe
from srl_jax.tasks.messages import system_prompt
from srl_jax.tasks.task import Answer, RewardSettings, Score, Task

__all__ = ["TASKS", "Answer", "RewardSettings", "Score", "Task", "system_prompt"]

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
_STEP_TASK, _WHOLE_TASK = "srl", "rlvr"


def methods() -> list[str]:
  """Returns the values of config.method: all tasks but swe (a data.domain), and sft."""
  return [*(name for name in TASKS if name != "swe"), SUPERVISED]


def task_of(method: str, domain: str = "math") -> str:
  """Returns the name of the task that a method trains on; UserError for an unknown one."""
  if method not in methods():
    raise UserError(f"method: {method!r} is unknown; use {' | '.join(methods())}")
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
  return _STEP_TASK if by_steps else _WHOLE_TASK


def example_kind(method: str, domain: str = "math") -> ExampleKind:
  """Returns which examples a method is trained on; UserError for an unknown method."""
  name = task_of(method, domain)
  return ExampleKind(
    method=method,
    task=name,
    unit=TASKS[name].unit,
    needs=("target",) if method == SUPERVISED else TASKS[name].needs,
    supervised=method == SUPERVISED,
    step_task=_STEP_TASK,
  )


def load_examples(config) -> Examples:
  """Returns the training and validation examples of a config.

  Raises UserError for data that cannot be used (data.sources.load_examples), or of unknown tasks.
  """
  kind = example_kind(config.method, config.data.domain)
  examples = sources.load_examples(DataConfig.from_group(config.data), kind, seed=config.seed)
  for example in (*examples.train, *examples.validation):
    if example.task not in TASKS:
      raise UserError(
        f"{config.data.path}: example {example.id} is of the unknown task {example.task!r}; use one"
        f" of {', '.join(TASKS)}, or add it to srl_jax.tasks.TASKS in the config file"
      )
  return examples
