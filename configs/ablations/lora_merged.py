"""SRL with adapters that are merged into the bfloat16 weights of a vLLM server after each step.

  launch/node.sh configs/ablations/lora_merged.py     8 x H100: the trainer on four, servers on four

It shows what rounding costs: a change of a weight that is smaller than a part in 256 of it does not
reach the server, and `logprob_gap_mean` of metrics.jsonl has what that does to the samples.
configs/ablations/lora.py with --config.rollout.engine=vllm pushes the adapters themselves.
Arguments: those of srl_math.py; there is no figure of the paper.
"""

from configs.ablations import lora


def get_config(arg=None):
  config = lora.get_config(arg)
  config.rollout.engine = "vllm"
  config.lora.merged_push = True
  return config
