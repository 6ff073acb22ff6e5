"""SFT on s1K-1.1's whole reasoning traces: a baseline of the paper (Table 1, SFT (R1 reasoning)).

  launch/run.sh configs/sft_reasoning.py                              8 x H100
  launch/run.sh configs/sft_reasoning.py:model=DIR,data=FILE,reasoning=COLUMN,tiny   a laptop's CPU

The response to learn is DeepSeek-R1's reasoning in think tags, then its numbered solution; the
prompt is the plain one. Arguments: those of srl_math.py. Optimiser: Table 5.

The paper's figures, greedy accuracy in % (AMC23, AIME24, AIME25, Minerva Math): 40.0, 10.0, 10.0,
20.2; 50.0, 13.3, 6.7, 34.9 before.
"""

from configs import sft_outline, srl_math
from srl_jax.config import parse_arg


def get_config(arg=None):
  config = sft_outline.get_config(arg)
  config.data.fields.reasoning = parse_arg(arg, **srl_math.ARGUMENTS).reasoning
  config.batch.tokens_per_device *= 2  # 32,768, the model's limit, because the traces are long
  return config
