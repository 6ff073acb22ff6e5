"""A tiny policy and groups of ragged prompts and responses, for the learner's tests."""

import dataclasses

import jax
import numpy as np
import pytest

from srl_jax.learner.rows import PackedGroup, Response
from srl_jax.policy import model as M

TINY = M.ModelConfig(
  vocab_size=96,
  hidden_size=64,
  intermediate_size=128,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=32,
)


@pytest.fixture(scope="session")
def tiny():
  """The architecture."""
  return TINY


@pytest.fixture(scope="session")
def policy():
  """policy(seed=0, vocab_size=96) -> Qwen2 in the layout of the set mesh; a new copy at each call.

  Weights are numpy's random numbers, large enough for logits that are far from uniform.
  """

  def make(seed=0, vocab_size=TINY.vocab_size):
    rng = np.random.default_rng(seed)
    config = dataclasses.replace(TINY, vocab_size=vocab_size)

    def draw(leaf):
      matrix = leaf.ndim > 2 or leaf.shape == (vocab_size, TINY.hidden_size)
      return rng.normal(0.0 if matrix else 1.0, 0.2, leaf.shape).astype(np.float32)

    model = jax.tree.map(draw, M.abstract(config))
    return jax.jit(M.shard)(jax.tree.map(jax.numpy.asarray, model))

  return make


@pytest.fixture(scope="session")
def groups():
  """Five groups: prompts of 1 to 15 tokens, responses of 1 to 12, sizes 9 to 57."""
  rng = np.random.default_rng(5)
  shapes = [(9, [4, 7, 1, 12]), (1, [3, 3, 1, 1]), (15, [12, 10, 9, 11]), (6, [2, 5, 8, 1])]
  shapes += [(12, [1, 6, 2, 3])]

  def response(length):
    logprobs = rng.uniform(-5, -3, length)
    return Response(
      rng.integers(1, 96, length).tolist(), logprobs.tolist(), float(rng.normal()), 0.0
    )

  return [
    PackedGroup(rng.integers(1, 96, prompt).tolist(), [response(n) for n in lengths])
    for prompt, lengths in shapes
  ]
