"""SRL with four optimiser steps for each batch, so that the clip of equation (1) binds.

  launch/run.sh configs/ablations/clip.py                             8 x H100

With one step the ratio is 1 and nothing is clipped; the paper prints the clip and not the number of
steps. Arguments: those of srl_math.py; there is no figure of the paper.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.steps_per_batch = 4
  return config
