"""An engine with responses given by the test, and fixtures around it."""

import pytest

from srl_jax.data.tokenizer import EncodedPrompt
from srl_jax.evals.math_benchmarks import Solver
from srl_jax.rollout.engine import Rollout, SamplingParams


class Scripted:
  """Answers a prompt with respond(prompt_id, sample), last prompt first; counts what it sampled.

  After `stop_after` groups it raises KeyboardInterrupt.
  """

  def __init__(self, respond, stop_after=None):
    self.respond, self.stop_after = respond, stop_after
    self.asked = []

  def sample(self, prompts, n, params):
    for prompt in reversed(list(prompts)):
      if len(self.asked) == self.stop_after:
        raise KeyboardInterrupt
      self.asked.append(prompt.id)
      texts = [self.respond(prompt.id, sample) for sample in range(n)]
      yield [
        Rollout(prompt.id, (7, 8, 9), (-0.123456789, -1.0, -2.0), "stop", 0, text) for text in texts
      ]


def ask(problem, context):
  """Other words, another prompt."""
  return EncodedPrompt(list(" ".join([problem, *context]).encode()), False)


@pytest.fixture
def scripted():
  return Scripted


@pytest.fixture
def solver():
  """solver(engine, mode="whole") with room for long stepwise solutions."""
  return lambda engine, mode="whole": Solver(engine, ask, mode, SamplingParams(16), 5, 10_000)
