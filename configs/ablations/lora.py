"""SRL with adapters of rank 16 beside frozen weights: what does full fine-tuning add?

  launch/run.sh configs/ablations/lora.py                             8 x H100
  launch/run.sh configs/ablations/lora.py --config.lora.targets=attention
  launch/run.sh configs/ablations/lora.py --config.lora.rank=1

The learning rate is lora.lr_factor times that of full fine-tuning. Arguments: those of srl_math.py;
there is no figure of the paper.
"""

from configs import srl_math


def get_config(arg=None):
  config = srl_math.get_config(arg)
  config.lora.rank = 16
  return config
