"""PromptSet: the examples with prompts that fit, and their tokens."""

import dataclasses
import pathlib

import pytest

from configs import quickstart
from srl_jax.data.examples import StepExample
from srl_jax.data.tokenizer import encode, load_tokenizer
from srl_jax.rollout.prompt_set import PromptSet
from srl_jax.tasks import TASKS, PromptSettings, system_prompt

MODEL = pathlib.Path(__file__).resolve().parents[2] / "configs" / "miniature"


def config(**values):
  made = quickstart.get_config()
  made.model = str(MODEL)
  made.update_from_flattened_dict({key.replace("__", "."): v for key, v in values.items()})
  return made


def example(number, problem="Start with 4. Add 3.", task="srl", hint=None, context=()):
  return StepExample(f"p/{number}", "p", task, problem, list(context), hint, "x", "7")


def test_prompt_set_encodes_examples_within_the_limit():
  """Each with its task's system prompt, its steps so far and its hint; long ones are counted."""
  tokenizer = load_tokenizer(MODEL)
  examples = [
    example(1),
    example(2, context=["1. **Add 3**: 4+3=7"]),
    example(3, problem="Start with 4. " + "Add 3. " * 40),
    example(4, hint="Add 3"),
    example(5, task="rlvr"),
  ]
  prompt_set = PromptSet(config(data__max_prompt_tokens=40), tokenizer, examples)
  assert prompt_set.too_long == 1 and not prompt_set.think_opened
  longer = dataclasses.replace(examples[0], target="Add 3. Add 3. Add 3.")
  room = dict(method="sft", batch__tokens_per_device=len(prompt_set.prompt(0).token_ids) + 3)
  supervised = PromptSet(config(**room), tokenizer, [longer, examples[0]])
  assert supervised.too_long == 1 and supervised.examples == [examples[0]]
  size = len(prompt_set.prompt(0).token_ids) + 3  # the model's positions are a limit, too
  short = PromptSet(config(method="sft"), tokenizer, [longer, examples[0]], positions=size)
  assert short.examples == [examples[0]]
  prompts = prompt_set.all_prompts()
  assert (
    [e.id for e in prompt_set.examples] == [p.id for p in prompts] == ["p/1", "p/2", "p/4", "p/5"]
  )
  assert prompt_set.prompt(2) == prompts[2]
  found = {p.id: list(p.token_ids) for p in prompts}
  for e in prompt_set.examples:
    system = system_prompt(TASKS[e.task], PromptSettings())
    messages = TASKS[e.task].build_messages(e.problem, e.context, e.hint, system)
    assert found[e.id] == list(encode(tokenizer, messages).token_ids)
  assert len({tuple(ids) for ids in found.values()}) == 4


def test_prompt_set_refuses_a_limit_below_all_prompts():
  tokenizer = load_tokenizer(MODEL)
  with pytest.raises(ValueError, match=r"data\.max_prompt_tokens: .* 2 .* 3 tokens"):
    PromptSet(config(data__max_prompt_tokens=3), tokenizer, [example(1), example(2)])
  assert PromptSet(config(), tokenizer, []).all_prompts() == []
