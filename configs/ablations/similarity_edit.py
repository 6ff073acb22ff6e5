"""SRL rewarded by the normalised edit distance of characters instead of SequenceMatcher.

  launch/run.sh configs/ablations/similarity_edit.py                  8 x H100

A sentence that is moved costs twice its length; SequenceMatcher finds the longer part in its place.
docs/rewards.md compares the measures. Arguments: those of srl_math.py; the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.reward.similarity = "edit"
  return config
