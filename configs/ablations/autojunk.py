"""SRL with difflib's junk rule on, as in Python's default SequenceMatcher.

  launch/run.sh configs/ablations/autojunk.py                         8 x H100

The rule ignores characters that make up more than 1 % of a target of 200 or more characters, which
are nearly all characters of prose, so long steps score low. The paper's formula has no such rule,
and the paper does not mention it. Arguments: those of srl_math.py; the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.reward.autojunk = True
  return config
