"""SRL that drops more groups: epsilon of dynamic sampling at 0.05, five times ours.

  launch/run.sh configs/ablations/epsilon.py                          8 x H100
  launch/run.sh configs/ablations/epsilon.py --config.algorithm.std_epsilon=0.0   any difference

The paper keeps a group if the standard deviation of its rewards exceeds epsilon, but does not state
its value. Arguments: those of srl_math.py; the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.std_epsilon = 0.05
  return config
