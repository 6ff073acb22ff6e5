"""SRL with adapters beside the matrices of attention only, as many peft recipes have them.

  launch/run.sh configs/ablations/lora_attention.py                   8 x H100

configs/ablations/lora.py adapts the mlp too. Arguments: those of srl_math.py; there is no figure of
the paper.
"""

from configs.ablations import lora


def get_config(arg=None):
  config = lora.get_config(arg)
  config.lora.targets = "attention"
  return config
