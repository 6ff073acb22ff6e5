"""What a task is: a prompt, a format, a reward. Each file beside this one defines one.

All tasks use one system and one user message, rendered by the model's own chat template:

    system   how to answer: the next step only, or the whole solution
    user     the problem
             <blank line> Partial solution:            if there are earlier steps
             the steps
             <blank line> Title of the next step: ...  if a hint is given

The number of messages never depends on the number of steps, so that training and turn-by-turn
evaluation build their prompts with the same function.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from srl_jax.data.examples import StepExample
from srl_jax.errors import UserError


class ParsedResponse(NamedTuple):
  """One response to an example, taken apart.

  Attributes:
    example: the prompt and its target.
    action: the stripped text outside all think blocks (of a malformed response too).
    monologue: the stripped text inside the think tags; several blocks are joined by newlines.
    failure: reason why the response breaks the task's format, or None.
  """

  example: StepExample
  action: str
  monologue: str
  failure: str | None


class Score(NamedTuple):
  """The reward of one response. `failure`, `action`, `monologue`: as in ParsedResponse."""

  reward: float
  failure: str | None
  action: str
  monologue: str


@dataclasses.dataclass(frozen=True)
class RewardSettings:
  """The config's group `reward`, and processes for the work.

  Attributes:
    similarity: name in srl_jax.rewards.SIMILARITIES.
    autojunk: of the similarity "difflib" alone.
    format_penalty: reward of a malformed response.
    workers: processes that a large batch of difflib's similarities may use; 0: none.
  """

  similarity: str
  autojunk: bool
  format_penalty: float
  workers: int = 0


class PromptSettings(NamedTuple):
  """How prompts are worded, from the config's group `prompt`.

  `example` and `open_think` apply to tasks that have a worked answer, Task.example.

  Attributes:
    style: of whole solutions, "think" or "plain".
    system_file: text file that replaces the system prompt, or "".
    example: whether the system prompt ends with the task's worked answer.
    open_think: whether the prompt ends with an opened think block.
  """

  style: str = "think"
  system_file: str = ""
  example: bool = False
  open_think: bool = False

  @classmethod
  def from_group(cls, group: Mapping[str, Any]) -> "PromptSettings":
    """The settings of a config's group `prompt`; keys of an older run may be missing."""
    return cls(**{name: group[name] for name in cls._fields if name in group})


@dataclasses.dataclass(frozen=True)
class Task:
  """A task as plain functions. A new one is most easily made from an existing one:

    TASKS["mine"] = dataclasses.replace(TASKS["srl"], system="...", reward=my_reward)

  Attributes:
    system: the system prompt, or one for each `prompt.style` of the config.
    build_messages: (problem, context, hint, system) -> chat messages, one system and one user
      message however long the context is.
    format_failure: (text, finish_reason, think_opened=) -> the reason why a response is malformed,
      or None; see data.responses.format_failure.
    reward: (responses, settings) -> one number for each, which must not depend on the others: they
      are a part of a group, a group, or many groups that are computed together.
    drop_reason: (scores of a group that dynamic sampling drops because its rewards are all but
      equal) -> the reason that is written beside the group.
    unit: examples that are made from an expert's solutions, see data.examples.ExampleKind.
    needs: fields of a StepExample that the reward cannot do without.
    example: a worked answer for the system prompt, where a response is one think block and an
      action; else "".
  """

  system: str | Mapping[str, str]
  build_messages: Callable[[str, Sequence[str], str | None, str], list[dict[str, str]]]
  format_failure: Callable[..., str | None]
  reward: Callable[[Sequence[ParsedResponse], RewardSettings], Sequence[float]]
  drop_reason: Callable[[Sequence[Score]], str]
  unit: str
  needs: tuple[str, ...]
  example: str = ""


# ---------------------------------------------------------------------------------- messages

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


def system_prompt(task: Task, settings: PromptSettings) -> str:
  """Returns the system prompt of a task, with its worked answer if the settings ask for it.

  Raises:
    UserError: a style that the task does not have, or a system_file that is missing or empty.
  """
  if settings.system_file:
    text = _read_system_file(pathlib.Path(settings.system_file))
  elif isinstance(task.system, str):
    text = task.system
  elif settings.style in task.system:
    text = task.system[settings.style]
  else:
    raise UserError(f"prompt.style={settings.style!r}: use one of {', '.join(task.system)}")
  return f"{text}\n\n{task.example}" if settings.example and task.example else text


def opens_think(task: Task, settings: PromptSettings) -> bool:
  """Whether the prompts of a task end with an opened think block."""
  return settings.open_think and bool(task.example)


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
