"""Solving whole problems with an engine: in one response, or turn by turn to the boxed answer.

Turn by turn is how SRL trains: each turn sees the problem and the actions so far, monologues
dropped, in the very prompt that training uses (data.prompts.build_messages).
"""

import dataclasses
from collections.abc import Callable, Sequence

from srl_jax.data import prompts
from srl_jax.rollout.engine import Engine, Prompt, SamplingParams

Ask = Callable[[str, Sequence[str]], prompts.EncodedPrompt]


@dataclasses.dataclass(frozen=True)
class Task:
  """A problem to solve: id, its text and the gold answer."""

  id: str
  problem: str
  answer: str


@dataclasses.dataclass
class Episode:
  """One attempt at a problem.

  Fields: task; sample, its index; responses, as sampled; actions, without the monologues; ended,
  "" while it goes on, then boxed, whole, max_turns, prompt_too_long or a format failure's reason;
  tokens, sampled in all.
  """

  task: Task
  sample: int
  responses: list[str] = dataclasses.field(default_factory=list)
  actions: list[str] = dataclasses.field(default_factory=list)
  ended: str = ""
  tokens: int = 0

  @property
  def solution(self) -> str:
    """What a reader sees."""
    return "\n".join(self.actions)


def asker(tokenizer, task: str, style: str, system_file: str | None = None) -> Ask:
  """The function (problem, context) -> EncodedPrompt for a task's prompts (data.prompts)."""
  system = prompts.system_prompt(task, "think" if task == "srl" else style, system_file)
  return lambda problem, context: prompts.encode(
    tokenizer, prompts.build_messages(problem, context, None, system)
  )


def solve_whole(
  engine: Engine, ask: Ask, tasks: Sequence[Task], n: int, params: SamplingParams
) -> list[Episode]:
  """n episodes of one response for each task, think blocks allowed anywhere."""
  asked = {task.id: (task, ask(task.problem, ())) for task in tasks}
  batch = [Prompt(id, tuple(prompt.token_ids)) for id, (_, prompt) in asked.items()]
  groups = {group[0].prompt_id: group for group in engine.sample(batch, n, params)}
  episodes = []
  for id, (task, prompt) in asked.items():
    for sample, rollout in enumerate(groups[id]):
      action = prompts.outside_think_blocks(rollout.text, think_opened=prompt.think_opened)
      ended = "whole" if rollout.finish_reason == "stop" else "cut_off"
      episodes.append(
        Episode(task, sample, [rollout.text], [action], ended, len(rollout.token_ids))
      )
  return episodes


def solve_stepwise(
  engine: Engine,
  ask: Ask,
  tasks: Sequence[Task],
  n: int,
  params: SamplingParams,
  *,
  max_turns: int,
  max_prompt_tokens: int,
) -> list[Episode]:
  """n episodes for each task, turn by turn until an action holds a boxed answer.

  An episode whose turn breaks the format ends there, without an answer.
  """
  episodes = [Episode(task, sample) for task in tasks for sample in range(n)]
  for turn in range(max_turns):
    asked = {}
    for episode in (e for e in episodes if not e.ended):
      prompt = ask(episode.task.problem, episode.actions)
      if len(prompt.token_ids) > max_prompt_tokens:
        episode.ended = "prompt_too_long"
      else:
        asked[f"{episode.task.id}#{episode.sample}/{turn}"] = (episode, prompt)
    if not asked:
      break
    batch = [Prompt(id, tuple(prompt.token_ids)) for id, (_, prompt) in asked.items()]
    for (rollout,) in engine.sample(batch, 1, params):
      episode, prompt = asked[rollout.prompt_id]
      _take_turn(episode, rollout, prompt.think_opened)
  for episode in episodes:
    episode.ended = episode.ended or "max_turns"
  return episodes


def _take_turn(episode: Episode, rollout, think_opened: bool) -> None:
  episode.responses.append(rollout.text)
  episode.tokens += len(rollout.token_ids)
  opened = dict(think_opened=think_opened)
  failure = prompts.format_failure(rollout.text, rollout.finish_reason, **opened)
  if failure:
    episode.ended = failure
    return
  episode.actions.append(prompts.parse_response(rollout.text, **opened).action)
  if "\\boxed{" in episode.actions[-1]:
    episode.ended = "boxed"
