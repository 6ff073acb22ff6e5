"""SRL on one GPU: a step takes less than a minute on an H100, a training curve one evening.

  launch/run.sh configs/one_card.py                                         0.5B on s1K-1.1
  launch/run.sh configs/one_card.py:model=Qwen/Qwen2.5-1.5B-Instruct        all weights
  launch/run.sh configs/one_card.py:model=Qwen/Qwen2.5-7B-Instruct          LoRA
  launch/run.sh configs/one_card.py:data=FILE.jsonl,problem=COLUMN,solution=COLUMN,answer=COLUMN

Arguments: those of srl_math.py, and lora, the rank of adapters, 0 to train all weights. Without it
the size in the model's name decides: all weights of up to 2B parameters, at 16 bytes per weight,
and adapters of rank 16 beside larger ones (docs/lora.md). Small models often miss the format of a
step at first; therefore the prompt shows a worked answer and opens the think block (docs/form.md).
"""

import re

from configs import srl_math
from srl_jax.config import parse_arg

LARGEST_FULL = 2.0  # billion parameters; 3B fills an 80 GB card before the first KV cache
BY_SIZE = -1
ARGUMENTS = srl_math.ARGUMENTS | dict(model="Qwen/Qwen2.5-0.5B-Instruct", lora=BY_SIZE)


def lora_rank(model: str) -> int:
  """Returns 16 for a name with more than LARGEST_FULL billion parameters ("7B"), else 0."""
  size = re.search(r"(\d+(?:\.\d+)?)b\b", model.rpartition("/")[2], re.IGNORECASE)
  return 16 if size and float(size[1]) > LARGEST_FULL else 0


def get_config(arg=None):
  return configure(parse_arg(arg, **ARGUMENTS))


def configure(args):
  """Returns the config for parsed arguments."""
  config = srl_math.configure(args)
  config.mesh = "fsdp=1"
  config.lora.rank = lora_rank(args.model) if args.lora == BY_SIZE else args.lora
  config.data.holdout = 30
  config.data.max_prompt_tokens = 2048
  config.prompt.example = True
  config.prompt.open_think = True
  config.rollout.max_tokens = 768
  config.batch.prompts = 64
  config.batch.tokens_per_device = 16384
  config.algorithm.max_rounds = 3
  config.optimizer.lr = 1e-6  # twice the paper's: small models and batches tolerate it
  config.train.steps = 300
  config.train.eval_every = 25
  config.train.save_every = 25
  config.eval.mode = "off"
  if args.tiny:
    srl_math.tiny(config)
  return config
