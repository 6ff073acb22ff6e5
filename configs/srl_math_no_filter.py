"""SRL without dynamic sampling (Table 2, SRL w/out DS).

  launch/run.sh configs/srl_math_no_filter.py                         8 x H100
  launch/run.sh configs/srl_math_no_filter.py:model=DIR,data=FILE,tiny   a laptop's CPU

Each batch is trained on as it was drawn, including groups with equal rewards. Everything else is as
in srl_math.py, including the arguments.

The paper's figures, greedy accuracy in % (AMC23, AIME24, AIME25, Minerva Math): 52.5, 13.3, 6.7,
33.8; 50.0, 16.7, 13.3, 36.4 with dynamic sampling.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.algorithm.dynamic_sampling = False
  return config
