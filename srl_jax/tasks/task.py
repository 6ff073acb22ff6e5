"""The parts of a task: prompt, format and reward. Every other file of this folder defines one task.

All tasks use one system and one user message, rendered by the model's own chat template:

    system   how to answer: the next step only, or the whole solution
    user     the problem
             <blank line> Partial solution:            if there are earlier steps
             the steps
             <blank line> Title of the next step: ...  if a hint is given

There are always two messages, regardless of the number of steps, so that training and turn-by-turn
evaluation build their prompts with the same function.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from srl_jax.data.examples import StepExample
from srl_jax.errors import UserError


class ParsedResponse(NamedTuple):
  """One response to an example, split into its parts.

  Attributes:
    example: the prompt and its target.
    action: the stripped text outside all think blocks (also of a malformed response).
    monologue: the stripped text inside the think tags; several blocks are joined by newlines.
    failure: the reason why the response is malformed in the task's format, or None.
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
  """The config's group `reward`, and the number of worker processes.

  Attributes:
    similarity: name in srl_jax.rewards.SIMILARITIES.
    autojunk: setting of the similarities "difflib" and "words"; others ignore it.
    format_penalty: reward of a malformed response.
    workers: number of processes for a large batch of similarities; 0 for none.
  """

  similarity: str
  autojunk: bool
  format_penalty: float
  workers: int = 0


class PromptSettings(NamedTuple):
  """The wording of prompts, from the config's group `prompt`.

  `example` and `open_think` apply only to tasks with a worked answer, Task.example.

  Attributes:
    style: of whole solutions, "think" or "plain".
    system_file: path of a text file that replaces the system prompt, or "".
    example: whether the system prompt ends with the task's worked answer.
    open_think: whether the prompt ends with an open think tag.
  """

  style: str = "think"
  system_file: str = ""
  example: bool = False
  open_think: bool = False

  @classmethod
  def from_group(cls, group: Mapping[str, Any]) -> "PromptSettings":
    """Returns a config's group `prompt` as PromptSettings; older runs may lack some keys."""
    return cls(**{name: group[name] for name in cls._fields if name in group})


@dataclasses.dataclass(frozen=True)
class Task:
  """A task as plain functions. The easiest way to a new task is to change an existing one:

    TASKS["mine"] = dataclasses.replace(TASKS["srl"], system="...", reward=my_reward)

  Attributes:
    system: the system prompt, or {config.prompt.style: system prompt}.
    build_messages: (problem, context, hint, system) -> chat messages: one system and one user
      message, however long the context is.
    format_failure: (text, finish_reason, think_opened=) -> the reason why a response is malformed,
      or None; see data.responses.format_failure.
    reward: (responses, settings) -> one number per response. It must not depend on the other
      responses, because a call may contain a part of a group, one group or many.
    drop_reason: (scores) -> the reason that is recorded for a group that dynamic sampling drops
      because its rewards are (nearly) equal. The scores have no texts: processes exchange numbers.
    unit: the examples to make of an expert's solution, see data.examples.ExampleKind.
    needs: fields of a StepExample that the reward requires.
    example: a worked answer for the system prompt, if a response is one think block and an action;
      else "".
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
STEP_JOINER = "\n\n"  # experts' solutions separate paragraphs and headings in the same way
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
    heading: the text between the problem and the context.
    form: of the response, "step" or "solution". It is a field of the system message and not
      part of any text: the miniature's chat template reads it, the templates of other models do
      not.
  """
  user = problem
  if context:
    user += heading + STEP_JOINER.join(context)
  if hint:
    user += HINT + hint
  return [
    # Chat templates ignore fields that they do not know, such as `form`.
    {"role": "system", "content": system, "form": form},
    {"role": "user", "content": user},
  ]


def system_prompt(task: Task, settings: PromptSettings) -> str:
  """Returns the system prompt of a task, followed by its worked answer if the settings request it.

  Raises:
    UserError: the task does not have the style, or system_file is missing or empty.
  """
  # A file replaces the prompt of every style.
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
  """Returns whether the prompts of a task end with an open think tag."""
  return settings.open_think and bool(task.example)


def _read_system_file(path: pathlib.Path) -> str:
  """Returns the stripped text of prompt.system_file; UserError if it cannot be used."""
  if not path.is_file():
    raise UserError(
      f"prompt.system_file={str(path)!r} is not a file: give a text file or leave it unset"
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
