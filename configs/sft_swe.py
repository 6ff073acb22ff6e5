"""SFT on SWE-smith trajectories with Qwen2.5-Coder-7B-Instruct: the baseline of SRL on them.

  launch/run.sh configs/sft_swe.py                                    8 x H100
  launch/run.sh configs/sft_swe.py:model=DIR,data=FILE,tiny           a laptop's CPU

The prompts are those of srl_swe.py; the response to learn is the expert's thought in think tags,
then its action. Arguments: those of srl_swe.py. Optimiser: Table 5 of the paper.

The paper's figures, resolve rate in % (oracle file edit, end to end): 8.4, 4.2 for SWE-Gym-7B, an
SFT model from the same base with which the paper compares; 5.8, 3.2 for the base itself.
"""

from configs import srl_swe
from srl_jax.config import supervised


def get_config(arg=None):
  config = srl_swe.get_config(arg)
  supervised(config)
  if not config.train.steps:
    config.train.eval_every = 100  # an epoch has 2,100 steps
  return config
