"""Architectures by name, so that a plan needs no download."""

import pathlib
import re

import huggingface_hub

from srl_jax.errors import UserError
from srl_jax.policy.hf_files import load_config
from srl_jax.policy.model import ModelConfig

# Qwen2.5, its Coder and Math models too: vocab_size, hidden_size, intermediate_size, layers, query
# heads, key/value heads, tied head; from their config.json on the Hugging Face hub.
QWEN = {
  "0.5B": (151936, 896, 4864, 24, 14, 2, True),
  "1.5B": (151936, 1536, 8960, 28, 12, 2, True),
  "3B": (151936, 2048, 11008, 36, 16, 2, True),
  "7B": (152064, 3584, 18944, 28, 28, 4, False),
  "14B": (152064, 5120, 13824, 48, 40, 8, False),
  "32B": (152064, 5120, 27648, 64, 40, 8, False),
}


def architecture(name: str, dtype: str) -> ModelConfig:
  """The architecture of a model folder, of a Qwen2.5 by its name, or of a hub model (config.json).

  Raises UserError when it is none of these.
  """
  if pathlib.Path(name).expanduser().is_dir():
    return load_config(pathlib.Path(name).expanduser(), dtype)
  known = re.match(r"Qwen/Qwen2\.5-(?:Coder-|Math-)?([\d.]+B)(?:-Instruct)?$", name)
  if known and known[1] in QWEN:
    v, d, f, l, n, k, tied = QWEN[known[1]]
    positions = 4096 if "-Math-" in name else 32768  # max_position_embeddings
    return ModelConfig(
      *(v, d, f, l, n, k, d // n, positions), tie_word_embeddings=tied, dtype=dtype
    )
  try:
    return load_config(
      pathlib.Path(huggingface_hub.hf_hub_download(name, "config.json")).parent, dtype
    )
  except (OSError, ValueError) as error:
    raise UserError(
      f"model {name!r}: not a folder here, no Qwen2.5 ({', '.join(QWEN)}), and no config.json of "
      f"that name from the Hugging Face hub ({str(error).strip().splitlines()[0]})"
    ) from error
