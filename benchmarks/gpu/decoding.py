"""The built-in sampler with long limits: attention has to read what responses have, no more."""

import statistics

import numpy as np

from benchmarks.gpu.cases import SAMPLES, timed
from benchmarks.gpu.ours import model_config
from benchmarks.shapes import NoText
from srl_jax.policy.model import init
from srl_jax.rollout.engine import Prompt, SamplingParams
from srl_jax.rollout.sampler import Sampler
from srl_jax.rollout.slots import slot_shape


def of_equal_length(model: str, width: int, prompt: int, limit: int, tokens: int) -> dict:
  """`width` responses of `tokens` tokens each, in ring buffers of `limit`."""
  return _sample(model, width, 1, prompt, limit, tokens, ())


def until_a_stop(model: str, width: int, prompt: int, limit: int, mean: int) -> dict:
  """Responses of geometrically distributed lengths, two for each place, at most `limit` tokens."""
  # With random weights all tokens are about equally likely: one in `mean` ends a response.
  vocabulary = model_config(model).vocab_size
  stops = np.random.default_rng(1).choice(vocabulary, vocabulary // mean, replace=False)
  return _sample(model, width, 2, prompt, limit, limit, tuple(stops.tolist()))


def _sample(model, width, rounds, prompt, limit, tokens, stops) -> dict:
  """Tokens per second, prefill included, of rounds * width responses."""
  config = model_config(model)
  shape = slot_shape(width, SAMPLES, prompt, limit, kernel=config.attention)
  engine = Sampler(NoText(), stops, width, shapes=[shape])
  engine.load_weights(init(config, 0), 0)
  rng = np.random.default_rng(0)
  prompts = [
    Prompt(str(i), tuple(rng.integers(0, config.vocab_size, prompt).tolist()))
    for i in range(rounds * width // SAMPLES)
  ]
  count = 0

  def run():
    nonlocal count
    groups = engine.sample(prompts, SAMPLES, SamplingParams(tokens))
    count = sum(len(rollout.token_ids) for group in groups for rollout in group)

  seconds = timed(run)
  responses = rounds * width
  speed = count / statistics.median(seconds)
  return dict(seconds=seconds, tokens_per_second=speed, mean_tokens=count / responses)
