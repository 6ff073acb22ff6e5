"""What a task is: a prompt, a format, a reward. Each file beside this one defines one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from srl_jax.data.examples import StepExample


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
  """

  system: str | Mapping[str, str]
  build_messages: Callable[[str, Sequence[str], str | None, str], list[dict[str, str]]]
  format_failure: Callable[..., str | None]
  reward: Callable[[Sequence[ParsedResponse], RewardSettings], Sequence[float]]
  drop_reason: Callable[[Sequence[Score]], str]
  unit: str
  needs: tuple[str, ...]
