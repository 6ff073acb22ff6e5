"""SRL with the two choices of verl, the framework that the paper's runs were made with.

  launch/run.sh configs/ablations/verl.py                             8 x H100

verl divides advantages by the sample's standard deviation (ddof 1) and takes the mean over all
tokens of a batch; equation (1) of the paper takes it over each response first. Arguments: those of
srl_math.py; there is no figure of the paper.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.advantage_ddof = 1
  config.algorithm.aggregate = "token"
  return config
