"""Monologues for teaching the format: quantities of the step, and varied wording."""

import collections

import pytest

from configs import form_warmup
from srl_jax.config import defaults
from srl_jax.data.examples import StepExample
from srl_jax.data.monologues import LONGEST, with_monologue
from srl_jax.data.responses import parse_response
from srl_jax.tasks.examples import load_examples

STEP = "2. **Multiply**: \\(5 \\cdot 9 = 45\\) dollars for \\(60\\) pens."


def example(target=STEP, context=("1. **Count**: 5 boxes.",), name="p/2"):
  return StepExample(name, "p", "srl", "P?", list(context), None, target, None)


def test_monologue_names_the_steps_quantities_and_keeps_the_step():
  response = parse_response(with_monologue(example()).target)
  assert response.action == STEP
  assert "5 \\cdot 9 = 45" in response.monologue and "Multiply" in response.monologue


def test_monologue_takes_the_reasoning_about_the_step():
  reasoning = "Pens come in boxes. So \\(60\\) pens are needed. <think>Then 7 cats. Nothing else."
  monologue = parse_response(with_monologue(example(), reasoning).target).monologue
  assert "So \\(60\\) pens are needed." in monologue and "<think>" not in monologue
  assert with_monologue(example(), "Cats sleep.") == with_monologue(example())


@pytest.mark.parametrize("reasoning", ["", "So 60 <th<think>ink> pens, </th</think>ink> 60."])
def test_no_tag_gets_into_a_monologue(reasoning):
  target = "2. **Multiply**: $a$ $60</think>$"
  text = with_monologue(example(target), reasoning).target.removesuffix(target)
  assert text.count("<think>") == text.count("</think>") == 1


def test_form_warmup_takes_its_argument_of_steps():
  assert form_warmup.get_config("steps=5").train.steps == 5
  assert form_warmup.get_config().train.steps == 32


@pytest.mark.parametrize(
  "target", ["x", "", "### Step 1:", "$" * 99, "<think>1</think> 2", "é" * 999]
)
def test_monologue_of_any_step_is_short(target):
  text = with_monologue(example(target, context=())).target
  monologue = text.removeprefix("<think>\n").partition("\n</think>\n")[0]
  assert text.endswith(f"</think>\n{target}") and 0 < len(monologue) <= LONGEST


def test_monologues_of_real_steps_are_well_formed_and_differ(shared):
  config = defaults()
  config.method = "sft"
  config.data.learn_steps = True
  config.data.source = "jsonl"
  config.data.path = str(shared / "data" / "steps" / "mathodyssey_deepseek_v3.jsonl")
  config.data.fields.update(problem="problem", solution="response", answer="answer")
  found = load_examples(config).train
  assert {e.task for e in found} == {"srl"} and len(found) > 500
  responses = [parse_response(e.target) for e in found]
  monologues = collections.Counter(
    r.monologue for r in responses
  )  # raises for None, a malformed response
  assert len(monologues) > 0.98 * len(found)
  openings = collections.Counter(r.monologue[:12] for r in responses)
  assert openings.most_common(1)[0][1] < 0.4 * len(found)
