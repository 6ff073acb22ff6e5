"""The examples of a config, of the kind that its task is trained on."""

from srl_jax.data import sources
from srl_jax.data.data_config import DataConfig
from srl_jax.data.examples import ExampleKind, Examples
from srl_jax.errors import UserError
from srl_jax.tasks import STEP_TASK, SUPERVISED, TASKS, task_of


def example_kind(method: str, domain: str = "math", learn_steps: bool = False) -> ExampleKind:
  """Returns which examples a method is trained on; UserError for an unknown method."""
  name = task_of(method, domain, learn_steps)
  return ExampleKind(
    method=method,
    task=name,
    unit=TASKS[name].unit,
    needs=("target",) if method == SUPERVISED else TASKS[name].needs,
    supervised=method == SUPERVISED,
    step_task=STEP_TASK,
  )


def load_examples(config) -> Examples:
  """Returns the training and validation examples of a config.

  Raises UserError for data that cannot be used (data.sources.load_examples), or of unknown tasks.
  """
  kind = example_kind(config.method, config.data.domain, config.data.learn_steps)
  examples = sources.load_examples(DataConfig.from_group(config.data), kind, seed=config.seed)
  for example in (*examples.train, *examples.validation):
    if example.task not in TASKS:
      raise UserError(
        f"{config.data.path}: example {example.id} is of the unknown task {example.task!r}; use one"
        f" of {', '.join(TASKS)}, or add it to srl_jax.tasks.TASKS in the config file"
      )
  return examples
