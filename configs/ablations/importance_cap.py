"""SRL without importance weights: differences between engine and trainer are not corrected.

  launch/run.sh configs/ablations/importance_cap.py                   8 x H100

Arguments: those of srl_math.py; the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.importance_cap = 0.0
  return config
