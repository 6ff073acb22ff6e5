"""SRL rewarded by SequenceMatcher's ratio of words instead of characters.

  launch/run.sh configs/ablations/similarity_words.py                 8 x H100

A changed digit or letter costs a whole word, and white space nothing. docs/rewards.md compares the
measures. Arguments: those of srl_math.py; the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.reward.similarity = "words"
  return config
