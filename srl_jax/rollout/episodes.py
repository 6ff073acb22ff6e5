"""Solving whole problems with an engine: in one response, or turn by turn to the boxed answer.

Turn by turn is how SRL trains: the prompt of each turn has the problem and the actions so far,
monologues dropped, and is built by the function that training uses (srl_jax.tasks).
"""

import dataclasses
from collections.abc import Callable, Sequence

from srl_jax.data.responses import format_failure, outside_think_blocks, parse_response
from srl_jax.data.tokenizer import EncodedPrompt, encode
from srl_jax.rollout.engine import Engine, Prompt, Rollout, SamplingParams
from srl_jax.tasks import TASKS, PromptSettings, opens_think, system_prompt

# (problem, actions so far) -> the next prompt.
PromptBuilder = Callable[[str, Sequence[str]], EncodedPrompt]


@dataclasses.dataclass(frozen=True)
class Question:
  """A problem to solve: id, its text and the gold answer."""

  id: str
  problem: str
  answer: str


@dataclasses.dataclass
class Episode:
  """One attempt at a problem.

  Attributes:
    question: the problem to solve.
    sample: index among the attempts at the question.
    responses: as sampled, one for each turn.
    actions: the responses without their monologues.
    ended: "" until it ends, then boxed, whole, max_turns, prompt_too_long or the reason of a format
      failure.
    tokens: sampled in all turns.
  """

  question: Question
  sample: int
  responses: list[str] = dataclasses.field(default_factory=list)
  actions: list[str] = dataclasses.field(default_factory=list)
  ended: str = ""
  tokens: int = 0

  @property
  def solution(self) -> str:
    """The actions as one text."""
    return "\n".join(self.actions)


def prompt_builder(tokenizer, task: str, settings: PromptSettings) -> PromptBuilder:
  """Returns the function that builds a task's prompts.

  Args:
    tokenizer: from data.tokenizer.load_tokenizer.
    task: name in TASKS; tasks.task_of_mode has the one for a mode of evaluation.
    settings: how prompts are worded.
  """
  system, opened = system_prompt(TASKS[task], settings), opens_think(TASKS[task], settings)

  def build(problem: str, context: Sequence[str]) -> EncodedPrompt:
    return encode(tokenizer, TASKS[task].build_messages(problem, context, None, system), opened)

  return build


def solve_whole(
  engine: Engine,
  build_prompt: PromptBuilder,
  questions: Sequence[Question],
  n: int,
  params: SamplingParams,
) -> list[Episode]:
  """Returns n episodes of one response for each question, think blocks allowed anywhere."""
  # One prompt for each question, so that its n responses share a prefill.
  prompts = {question.id: build_prompt(question.problem, ()) for question in questions}
  batch = [Prompt(id, tuple(prompt.token_ids)) for id, prompt in prompts.items()]
  # Engines yield groups in any order.
  groups = {group[0].prompt_id: group for group in engine.sample(batch, n, params)}
  episodes = []
  for question in questions:
    prompt = prompts[question.id]
    for sample, rollout in enumerate(groups[question.id]):
      action = outside_think_blocks(rollout.text, think_opened=prompt.think_opened)
      ended = "whole" if rollout.finish_reason == "stop" else "cut_off"
      episodes.append(
        Episode(question, sample, [rollout.text], [action], ended, len(rollout.token_ids))
      )
  return episodes


def solve_stepwise(
  engine: Engine,
  build_prompt: PromptBuilder,
  questions: Sequence[Question],
  n: int,
  params: SamplingParams,
  *,
  max_turns: int,
  max_prompt_tokens: int,
) -> list[Episode]:
  """Returns n episodes for each question, turn by turn until an action holds a boxed answer.

  An episode ends, without an answer, at a turn that breaks the format.
  """
  episodes = [Episode(question, sample) for question in questions for sample in range(n)]
  # Each turn is one batch of all open episodes, so that the engine decodes them together.
  for turn in range(max_turns):
    turns = {}  # prompt id -> the episode and its prompt
    for episode in (e for e in episodes if not e.ended):
      prompt = build_prompt(episode.question.problem, episode.actions)
      if len(prompt.token_ids) > max_prompt_tokens:
        episode.ended = "prompt_too_long"
      else:  # the id determines the random numbers: another one for each sample and turn
        turns[f"{episode.question.id}#{episode.sample}/{turn}"] = (episode, prompt)
    if not turns:
      break
    batch = [Prompt(id, tuple(prompt.token_ids)) for id, (_, prompt) in turns.items()]
    for (rollout,) in engine.sample(batch, 1, params):
      episode, prompt = turns[rollout.prompt_id]
      _take_turn(episode, rollout, prompt.think_opened)
  for episode in episodes:
    episode.ended = episode.ended or "max_turns"
  return episodes


def _take_turn(episode: Episode, rollout: Rollout, think_opened: bool) -> None:
  """Adds a response to an episode, which it may end."""
  episode.responses.append(rollout.text)
  episode.tokens += len(rollout.token_ids)
  opened = dict(think_opened=think_opened)
  failure = format_failure(rollout.text, rollout.finish_reason, **opened)
  if failure:
    episode.ended = failure
    return
  episode.actions.append(parse_response(rollout.text, **opened).action)
  if "\\boxed{" in episode.actions[-1]:
    episode.ended = "boxed"
