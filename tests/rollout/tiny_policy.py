"""A tiny policy, prompts and a tokenizer that the tests of the sampler share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from srl_jax.policy import model as M
from srl_jax.rollout.engine import Prompt, SamplingParams

TINY = M.ModelConfig(
  vocab_size=96,
  hidden_size=64,
  intermediate_size=128,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=32,
)
STOPS = (7, 23)
PARAMS = SamplingParams(max_tokens=12, seed=3, step=5)
N = 4
RNG = np.random.default_rng(11)
LENGTHS = [1, 2, 9, 30, 17, 1, 25, 4, 12, 32, 8, 3]
PROMPTS = [
  Prompt(f"p{i}", tuple(RNG.integers(1, 96, length).tolist())) for i, length in enumerate(LENGTHS)
]


class Words:
  """A tokenizer with a word for every token; stop tokens are special."""

  def decode(self, ids, skip_special_tokens):
    return " ".join(f"w{i}" for i in ids if not (skip_special_tokens and i in STOPS))


def policy(seed=0, dtype="float32"):
  """A policy with a distribution far from uniform, the same on every mesh."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    matrix = leaf.ndim > 2 or leaf.shape == (TINY.vocab_size, TINY.hidden_size)
    return jnp.asarray(rng.normal(0.0 if matrix else 1.0, 0.2, leaf.shape), jnp.float32)

  return jax.jit(M.shard)(jax.tree.map(draw, M.abstract(dataclasses.replace(TINY, dtype=dtype))))


def tokens(groups):
  return {id: [rollout.token_ids for rollout in group] for id, group in groups.items()}


def assert_same(found, wanted):
  assert tokens(found) == tokens(wanted)
  for id in wanted:
    for a, b in zip(found[id], wanted[id]):
      np.testing.assert_allclose(a.sampler_logprobs, b.sampler_logprobs, atol=1e-5)
