"""SRL on s1K-1.1, off-policy by one step: vLLM samples a batch while the one before it trains.

  launch/node.sh configs/srl_math_vllm.py         8 x H100: the trainer on four, servers on four
  SRL_TRAINER_NODES=4 SRL_SERVER_NODES=2 launch/slurm.sh configs/srl_math_vllm.py

Importance weights correct for the older policy. Everything else, and the arguments, are those of
srl_math.py; there is no figure of the paper.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.rollout.engine = "vllm"
  config.rollout.lag = 1
  config.rollout.patience = 1800.0  # seconds: a scheduler may have to find a node for a lost server
  return config
