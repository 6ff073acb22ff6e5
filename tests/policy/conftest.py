"""Small models that Hugging Face's own code made and wrote, for parity."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.policy import weights

CASES = {  # (heads, key/value heads, head size, tied); hidden size 48, so the head size is its own
  "gqa1-tied": (2, 2, 32, True),
  "gqa2-untied": (4, 2, 16, False),
  "gqa7-untied": (7, 1, 8, False),
}


def _transformers_model(case):
  """A random transformers model; biases and norms random too, so that a swap of two shows."""
  import torch
  import transformers

  heads, kv_heads, head_dim, tied = CASES[case]
  config = transformers.Qwen2Config(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    head_dim=head_dim,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    rms_norm_eps=1e-5,
    tie_word_embeddings=tied,
  )
  torch.manual_seed(0)
  model = transformers.Qwen2ForCausalLM(config).eval()
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

  Pieces of a row stand one behind the other; segment 0 is padding (its positions are 0).
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
