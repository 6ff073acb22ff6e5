"""SRL with the title of the next step in the prompt; the target is the rest of the step.

  launch/run.sh configs/ablations/title_hint.py                       8 x H100

The paper's first footnote mentions titles, but not whether its main run used them. Arguments: those
of srl_math.py; the paper reports no figure.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.data.title_hint = True
  return config
