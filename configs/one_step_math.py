"""One-step similarity: the reward compares the whole solution at once (Table 3, One-step).

  launch/run.sh configs/one_step_math.py                              8 x H100
  launch/run.sh configs/one_step_math.py:model=DIR,data=FILE,tiny     a laptop's CPU

One response contains the whole solution, with think blocks anywhere; the text outside them is
compared with the expert's whole solution. Everything else is as in srl_math.py, including the
arguments. A problem is one prompt here instead of one per step, so 30 epochs are some 55 steps.

The paper's figures, greedy accuracy in % (AMC23, AIME24, AIME25, Minerva Math): 52.5, 13.3, 10.0,
34.9; 50.0, 16.7, 13.3, 36.4 with one prompt for each step (SRL).
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.method = "one_step"
  config.rollout.max_tokens = config.eval.max_tokens  # whole solutions
  return config
