"""SRL with four optimiser steps per batch, so that the clip of equation (1) takes effect.

  launch/run.sh configs/ablations/clip.py                             8 x H100

With one step the ratio is 1 and nothing is clipped; the paper states the clip but not the number of
steps. Arguments: those of srl_math.py; the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.steps_per_batch = 4
  return config
