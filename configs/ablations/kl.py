"""SRL with GRPO's KL penalty towards the base model, which the paper sets to 0 (Table 7).

  launch/run.sh configs/ablations/kl.py                               8 x H100

A second copy of the weights remains on the devices and scores every batch. Arguments: those of
srl_math.py; the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.kl = 0.001  # verl's default coefficient
  return config
