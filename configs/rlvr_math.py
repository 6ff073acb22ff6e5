"""RLVR on s1K-1.1 from Qwen2.5-7B-Instruct (Table 1, RL(VR); Table 3, final-answer reward).

  launch/run.sh configs/rlvr_math.py                                  8 x H100
  launch/run.sh configs/rlvr_math.py:model=DIR,data=FILE,tiny         a laptop's CPU

GRPO on whole solutions: reward 1 for a correct final answer, else 0. Groups that are all correct or
all wrong are dropped (DAPO's dynamic sampling). The prompt is Qwen2.5-Math's, as in the paper's
evaluation. Arguments: those of srl_math.py. Hyperparameters: Table 6.

The paper's figures, greedy accuracy in % (AMC23, AIME24, AIME25, Minerva Math): 47.5, 10.0, 10.0,
33.8; 50.0, 13.3, 6.7, 34.9 before.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.method = "rlvr"
  config.prompt.style = "plain"
  config.rollout.max_tokens = config.eval.max_tokens  # whole solutions
  config.algorithm.std_epsilon = 0.0  # rewards are 0 or 1: keep every group in which any differ
  config.batch.prompts = min(128, config.batch.prompts)
  return config
