"""SRL with Dr.GRPO's advantages: not divided by the group's standard deviation.

  launch/run.sh configs/ablations/dr_grpo.py                          8 x H100
  launch/run.sh configs/ablations/dr_grpo.py --config.algorithm.aggregate=constant

The second line has the other half of Dr.GRPO (arXiv 2503.20783), too: a response's tokens count the
same however long it is. Arguments: those of srl_math.py; there is no figure of the paper.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.advantage_scale = "none"
  return config
