"""SRL with a KL penalty towards the base model, which GRPO has and the paper sets to 0 (Table 7).

  launch/run.sh configs/ablations/kl.py                               8 x H100

A second copy of the weights stays on the devices and scores every batch. Arguments: those of
srl_math.py; there is no figure of the paper.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.kl = 0.001  # verl's default coefficient
  return config
