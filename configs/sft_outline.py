"""SFT on s1K-1.1's numbered solutions: a baseline of the paper (Table 1, SFT (R1 outline)).

  launch/run.sh configs/sft_outline.py                                8 x H100
  launch/run.sh configs/sft_outline.py:model=DIR,data=FILE,tiny       a laptop's CPU

The response to learn is the solution from which SRL takes its steps, without the reasoning before
it. The prompt is Qwen2.5-Math's, as in the paper's evaluation. Arguments: those of srl_math.py.
Optimiser: Table 5.

The paper's figures, greedy accuracy in % (AMC23, AIME24, AIME25, Minerva Math): 27.5, 3.3, 6.7,
31.6; 50.0, 13.3, 6.7, 34.9 before.
"""

from configs import srl_math
from srl_jax.config import supervised


def get_config(arg=None):
  config = srl_math.get_config(arg)
  supervised(config)
  config.prompt.style = "plain"
  if not config.train.steps:
    config.train.eval_every = 15  # an epoch of 940 responses
  return config
