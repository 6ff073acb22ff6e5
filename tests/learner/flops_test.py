"""The FLOPs of an update, by hand."""

import pytest

from srl_jax.learner.update import update_flops
from srl_jax.policy import model as M

CONFIG = M.ModelConfig(
  vocab_size=10,
  hidden_size=4,
  intermediate_size=6,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=2,
)


def test_update_flops_by_hand():
  """One prompt of 3 tokens and responses of 1 and 2: three times a forward pass of 6 tokens."""
  q_k_v_o = 4 * 4 + 4 * 2 + 4 * 2 + 4 * 4  # weights
  mlp = 3 * 4 * 6
  tokens = 3 + 1 + 2
  # Pairs of tokens that see each other, a triangle counted as half a square.
  pairs = 9 / 2 + (1 * 3 + 1 / 2) + (2 * 3 + 4 / 2)
  attention = 2 * 2 * 2 * 2 * pairs  # scores and values, 2 heads of 2, multiply and add
  head = 2 * 10 * 4 * (1 + 2)
  forward = 2 * (2 * (q_k_v_o + mlp) * tokens + attention) + head
  assert update_flops(CONFIG, [(3, [1, 2])]) == pytest.approx(3 * forward)


def test_update_flops_count_the_prompt_once_and_grow_with_groups():
  assert update_flops(CONFIG, [(50, [5, 5])]) < 1.5 * update_flops(CONFIG, [(50, [5])])
  some = (3, [4, 8, 2, 2])
  assert update_flops(CONFIG, [some, some]) == 2 * update_flops(CONFIG, [some])
