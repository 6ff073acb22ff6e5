"""SRL with two choices of verl, the framework of the paper's runs.

  launch/run.sh configs/ablations/verl.py                             8 x H100

verl divides advantages by the sample standard deviation (ddof 1) and averages over all tokens of a
batch; equation (1) of the paper averages over each response first. Arguments: those of srl_math.py;
the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.advantage_ddof = 1
  config.algorithm.aggregate = "token"
  return config
