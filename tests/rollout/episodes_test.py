"""Solving whole problems: the prompt of each turn, and how an episode ends."""

import types

import pytest

from srl_jax.data import arithmetic_tokenizer
from srl_jax.data.tokenizer import EncodedPrompt, encode, load_tokenizer
from srl_jax.rollout.engine import Rollout, SamplingParams
from srl_jax.rollout.episodes import Question, prompt_builder, solve_stepwise, solve_whole
from srl_jax.tasks import TASKS, PromptSettings, system_prompt

PARAMS = SamplingParams(max_tokens=9)
QUESTIONS = [Question("a", "Problem a.", "1"), Question("b", "Problem b.", "2")]


class Script:
  """An engine that responds with `say(prompt id, sample)`, the last prompt first."""

  def __init__(self, say):
    self.say, self.asked = say, []

  def sample(self, batch, n, params):
    self.asked.append({prompt.id: prompt for prompt in batch})
    for prompt in reversed(batch):
      group = []
      for sample in range(n):
        text = self.say(prompt.id, sample)
        reason = "length" if text.endswith("...") else "stop"
        ids = tuple(range(len(text.split())))
        group.append(Rollout(prompt.id, ids, (0.0,) * len(ids), reason, 0, text))
      yield group


def ask(problem, context):
  """A prompt of one token for the problem and one for each action so far."""
  return EncodedPrompt([0, *range(1, 1 + len(context))], False)


def stepwise(say, questions=QUESTIONS, n=1, **limits):
  engine = Script(say)
  limits = dict(max_turns=4, max_prompt_tokens=10) | limits
  return solve_stepwise(engine, ask, questions, n, PARAMS, **limits), engine


def test_solve_stepwise_continues_to_the_box():
  """The next prompt has the episode's actions without its monologues."""

  def say(id, sample):
    episode, turn = id.split("/")
    if turn == "2":
      return f"<think>done</think> So \\boxed{{{episode}}}."
    return f"<think>secret</think> Step {turn} of {episode}."

  contexts = []
  spy = lambda problem, context: contexts.append((problem, tuple(context))) or ask(problem, context)
  engine = Script(say)
  limits = dict(max_turns=4, max_prompt_tokens=10)
  episodes = solve_stepwise(engine, spy, QUESTIONS, 2, PARAMS, **limits)
  assert [(e.question.id, e.sample, e.ended) for e in episodes] == [
    (question, sample, "boxed") for question in "ab" for sample in (0, 1)
  ]
  for episode in episodes:
    name = f"{episode.question.id}#{episode.sample}"
    actions = [f"Step 0 of {name}.", f"Step 1 of {name}.", f"So \\boxed{{{name}}}."]
    assert episode.actions == actions and episode.solution == "\n".join(actions)
    assert len(episode.responses) == 3 and episode.responses[0].startswith("<think>secret")
    assert episode.tokens == sum(len(text.split()) for text in episode.responses)
  assert contexts[0] == ("Problem a.", ())
  assert ("Problem b.", ("Step 0 of b#1.", "Step 1 of b#1.")) in contexts
  assert not any(engine.asked[3:])
  # A stream of random numbers for every episode and turn.
  ids = [id for asked in engine.asked for id in asked]
  assert len(ids) == len(set(ids)) == 12


@pytest.mark.parametrize(
  "text, ended",
  [
    ("no monologue", "no_open"),
    ("<think>never closed", "no_close"),
    ("<think>x</think>", "empty_action"),
    ("<think>x</think> cut off at a limit ...", "cut_off"),
  ],
)
def test_solve_stepwise_ends_at_a_broken_format(text, ended):
  def say(id, sample):
    return text if id.endswith("/1") else "<think>x</think> first"

  episodes, engine = stepwise(say)
  assert [e.ended for e in episodes] == [ended] * 2
  assert [e.solution for e in episodes] == ["first"] * 2
  assert all(not asked for asked in engine.asked[2:])


def test_solve_stepwise_ends_at_its_limits():
  """Four turns; or prompts that grow beyond three tokens: problem and two actions."""
  endless = lambda id, sample: "<think>x</think> more"
  episodes, _ = stepwise(endless)
  assert [(e.ended, len(e.actions)) for e in episodes] == [("max_turns", 4)] * 2
  episodes, _ = stepwise(endless, max_prompt_tokens=3)
  assert [(e.ended, len(e.actions)) for e in episodes] == [("prompt_too_long", 3)] * 2


def test_solve_stepwise_episodes_end_independently():
  def say(id, sample):
    return "<think>x</think> \\boxed{1}" if id.startswith("a") else "<think>x</think> on"

  episodes, engine = stepwise(say)
  assert [e.ended for e in episodes] == ["boxed", "max_turns"]
  assert [sorted(asked) for asked in engine.asked] == [
    ["a#0/0", "b#0/0"],
    ["b#0/1"],
    ["b#0/2"],
    ["b#0/3"],
  ]


def test_solve_whole_has_one_response():
  """Think blocks are allowed anywhere, and groups are yielded in any order."""

  def say(id, sample):
    return f"<think>a</think> one {id}{sample} <think>b</think> two" + (" ..." if sample else "")

  episodes = solve_whole(Script(say), ask, QUESTIONS, 2, PARAMS)
  assert [(e.question.id, e.sample, e.ended) for e in episodes] == [
    ("a", 0, "whole"),
    ("a", 1, "cut_off"),
    ("b", 0, "whole"),
    ("b", 1, "cut_off"),
  ]
  assert episodes[2].solution.split() == ["one", "b0", "two"]
  assert episodes[2].responses == [say("b", 0)] and episodes[2].tokens == 5


def test_solve_stepwise_has_the_prompts_of_training(tmp_path):
  """The tokens are those of the task's messages with its system prompt."""
  arithmetic_tokenizer.save(tmp_path)
  tokenizer = load_tokenizer(tmp_path)
  context = ["1. **Add 3**: 4+3=7"]
  for task, style in [("srl", "think"), ("rlvr", "think"), ("rlvr", "plain")]:
    found = prompt_builder(tokenizer, task, PromptSettings(style))("Start with 4. Add 3.", context)
    system = system_prompt(TASKS[task], PromptSettings(style))
    messages = TASKS[task].build_messages("Start with 4. Add 3.", context, None, system)
    assert found == encode(tokenizer, messages)
  step, whole = (
    prompt_builder(tokenizer, task, PromptSettings())("x", ()).token_ids for task in ("srl", "rlvr")
  )
  assert step != whole


def test_solve_with_a_template_that_opens_the_think_block():
  """Then a response begins inside it."""
  opened = lambda problem, context: EncodedPrompt([0], True)
  engine = Script(lambda id, sample: "inside</think> \\boxed{3}")
  limits = dict(max_turns=2, max_prompt_tokens=5)
  (episode,) = solve_stepwise(engine, opened, QUESTIONS[:1], 1, PARAMS, **limits)
  assert (episode.ended, episode.solution) == ("boxed", "\\boxed{3}")
  (episode,) = solve_whole(engine, opened, QUESTIONS[:1], 1, PARAMS)
  assert episode.solution.strip() == "\\boxed{3}"


def test_solve_of_no_problems_is_empty():
  nothing = types.SimpleNamespace(sample=lambda batch, n, params: iter(()))
  assert solve_whole(nothing, ask, [], 2, PARAMS) == []
  limits = dict(max_turns=2, max_prompt_tokens=5)
  assert solve_stepwise(nothing, ask, [], 2, PARAMS, **limits) == []
