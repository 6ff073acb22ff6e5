"""SRL rewarded by chrF, the F-score of character n-grams, instead of SequenceMatcher.

  launch/run.sh configs/ablations/similarity_chrf.py                  8 x H100

The order of sentences hardly matters to it, and recall counts twice. docs/rewards.md compares the
measures. Arguments: those of srl_math.py; the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.reward.similarity = "chrf"
  return config
