"""SRL with DAPO's clip-higher (arXiv 2503.14476), which the paper cites beside dynamic sampling.

  launch/run.sh configs/ablations/clip_higher.py                      8 x H100

The upper bound of the ratio is 1.28, so that unlikely tokens can gain more. As in clip.py there
are four optimiser steps for each batch, or nothing is clipped. Arguments: those of srl_math.py;
there is no figure of the paper.
"""

from configs.ablations import clip


def get_config(arg=None):
  config = clip.get_config(arg)
  config.algorithm.clip_low = 0.2
  config.algorithm.clip_high = 0.28
  return config
