"""SRL with Dr.GRPO's advantages: not divided by the group's standard deviation.

  launch/run.sh configs/ablations/dr_grpo.py                          8 x H100
  launch/run.sh configs/ablations/dr_grpo.py --config.algorithm.aggregate=constant

The second command adds the other half of Dr.GRPO (arXiv 2503.20783): every token has the same
weight, however long its response. Arguments: those of srl_math.py; the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.advantage_scale = "none"
  return config
