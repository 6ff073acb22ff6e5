"""The chat messages of a prompt.

All tasks use one system and one user message, rendered by the model's own chat template:

    system   how to answer: the next step only, or the whole solution
    user     the problem
             <blank line> Partial solution:            if there are earlier steps
             the steps
             <blank line> Title of the next step: ...  if a hint is given

The number of messages never depends on the number of steps, so that training and turn-by-turn
evaluation build their prompts with the same function.
"""

import pathlib
from collections.abc import Sequence

from srl_jax.errors import UserError
from srl_jax.tasks.task import Task

PARTIAL_SOLUTION = "\n\nPartial solution:\n"
STEP_JOINER = "\n\n"  # as between the paragraphs and headings of real solutions
HINT = "\n\nTitle of the next step: "


def build_messages(
  problem: str,
  context: Sequence[str],
  hint: str | None,
  system: str,
  *,
  heading: str = PARTIAL_SOLUTION,
  form: str = "step",
) -> list[dict[str, str]]:
  """Returns one system and one user message.

  Args:
    problem: the question.
    context: the solution so far, in order: the expert's steps in training, the model's own actions
      in turn-by-turn evaluation. In software engineering: the last calls with their observations.
    hint: title of the next step, or None.
    system: the system prompt.
    heading: the line above the context.
    form: what the policy is to write, "step" or "solution". It becomes a field of the system
      message and no part of a text: the miniature's chat template reads it, real models' do not.
  """
  user = problem
  if context:
    user += heading + STEP_JOINER.join(context)
  if hint:
    user += HINT + hint
  return [
    {"role": "system", "content": system, "form": form},
    {"role": "user", "content": user},
  ]


def system_prompt(task: Task, style: str = "think", system_file: str | None = None) -> str:
  """Returns the system prompt of a task.

  Args:
    task: from TASKS.
    style: `prompt.style`; a task with a single prompt has no styles and ignores it.
    system_file: text file that replaces our wording (`prompt.system_file`).

  Raises:
    UserError: a style that the task does not have, or a system_file that is missing or empty.
  """
  if system_file:
    return _read_system_file(pathlib.Path(system_file))
  if isinstance(task.system, str):
    return task.system
  if style not in task.system:
    raise UserError(f"prompt.style={style!r}: use one of {', '.join(task.system)}")
  return task.system[style]


def _read_system_file(path: pathlib.Path) -> str:
  if not path.is_file():
    raise UserError(
      f"prompt.system_file={str(path)!r} is no file: give a text file or leave it unset"
    )
  try:
    text = path.read_text(encoding="utf-8").strip()
  except UnicodeDecodeError as error:
    raise UserError(
      f"prompt.system_file={str(path)!r} is not UTF-8 ({error}): save it as UTF-8"
    ) from error
  if not text:
    raise UserError(
      f"prompt.system_file={str(path)!r} is empty: write the prompt or leave it unset"
    )
  return text
