"""Small models that transformers itself made and wrote, for parity."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.policy import weights

CASES = {  # (heads, key/value heads, head size, tied); hidden size 48 is no multiple of head sizes
  "gqa1-tied": (2, 2, 32, True),
  "gqa2-untied": (4, 2, 16, False),
  "gqa7-untied": (7, 1, 8, False),
  "qwen3": (4, 2, 16, False),
  "qwen3-tied": (2, 1, 32, True),
  "llama": (4, 2, 16, False),
  "llama3-rope-tied": (6, 2, 16, True),
}
# Limits of 4 and 16 tokens, so that within 30 positions some angles stay and some are stretched.
LLAMA3_ROPE = dict(
  rope_type="llama3",
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)


def _transformers_model(case):
  """A random transformers model; biases and norms random too, so that a swap of two shows."""
  import torch
  import transformers

  heads, kv_heads, head_dim, tied = CASES[case]
  family = {"g": "Qwen2", "q": "Qwen3", "l": "Llama"}[case[0]]
  config = getattr(transformers, f"{family}Config")(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    head_dim=head_dim,
    rope_parameters={"rope_theta": 1e4}
    | (LLAMA3_ROPE if "llama3" in case else {"rope_type": "default"}),
    rms_norm_eps=1e-5,
    max_position_embeddings=4096,
    tie_word_embeddings=tied,
  )
  torch.manual_seed(0)
  model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
  for name, weight in model.named_parameters():
    torch.nn.init.normal_(weight, mean="norm" in name, std=0.2)
  return model


@pytest.fixture(scope="session")
def hf_case(tmp_path_factory):
  """hf_case(name of CASES) -> folder, theirs (transformers), config and model (ours, float32)."""
  made = {}

  def case(name):
    if name not in made:
      folder = tmp_path_factory.mktemp(name)
      theirs = _transformers_model(name)
      theirs.save_pretrained(folder)
      config, model = weights.load_hf(folder)
      made[name] = types.SimpleNamespace(folder=folder, theirs=theirs, config=config, model=model)
    return made[name]

  return case


@pytest.fixture(scope="session")
def their_logits():
  """their_logits(transformers model, tokens) -> logits_tv of one sequence alone."""
  import torch

  def logits(model, tokens):
    with torch.inference_mode():
      return model(torch.tensor(np.asarray(tokens)[None])).logits[0].numpy()

  return logits


@pytest.fixture(scope="session")
def rows():
  """rows([[(segment, tokens) ...] ...], t) -> tokens_bt, positions_bt, segments_bt.

  The pieces of a row follow each other; segment 0 is padding (its positions are 0).
  """

  def pack(pieces_of_rows, t):
    tokens, positions, segments = np.zeros((3, len(pieces_of_rows), t), np.int32)
    for row, pieces in enumerate(pieces_of_rows):
      at = 0
      for segment, ids in pieces:
        here = slice(at, at + len(ids))
        tokens[row, here], segments[row, here] = ids, segment
        positions[row, here] = np.arange(len(ids)) if segment else 0
        at += len(ids)
    return jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(segments)

  return pack
