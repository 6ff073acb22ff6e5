"""The quickstart with adapters of a high rank: does LoRA learn what full fine-tuning learns?

  launch/run.sh configs/quickstart_lora.py             5 to 7 minutes on 2 CPU cores

The base is the quickstart's, trained in full by configs/miniature_base.py. Arguments: those of
quickstart.py and rank.
"""

from configs import quickstart
from srl_jax.config import parse_arg


def get_config(arg=None):
  args = parse_arg(arg, seed=0, steps=600, rank=64)
  config = quickstart.get_config(f"seed={args.seed},steps={args.steps}")
  config.lora.rank = args.rank
  config.lora.alpha = 32.0
  # A starts with entries of 1 / sqrt(inputs), so a step of B changes the product A B seven times as
  # much at width 64 as at width 3584, for which 10 was measured. 3 learns less here (docs/lora.md).
  config.lora.lr_factor = 6.0
  return config
