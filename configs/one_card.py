"""SRL on one GPU: a step takes less than a minute on an H100, an evening gives a curve.

  launch/run.sh configs/one_card.py                                         0.5B on s1K-1.1
  launch/run.sh configs/one_card.py:model=Qwen/Qwen2.5-1.5B-Instruct
  launch/run.sh configs/one_card.py:data=FILE.jsonl,problem=COLUMN,solution=COLUMN,answer=COLUMN

The whole model is trained, with float32 weights and moments: 16 bytes a weight. Arguments: those of
srl_math.py. Models of up to 3B parameters often miss the form of a step at first; the prompt shows
a worked answer and opens the think block for them (docs/rollouts.md has the figures).
"""

from configs import srl_math
from srl_jax.config import parse_arg

ARGUMENTS = srl_math.ARGUMENTS | dict(model="Qwen/Qwen2.5-0.5B-Instruct")


def get_config(arg=None):
  return configure(parse_arg(arg, **ARGUMENTS))


def configure(args):
  """The config for parsed arguments."""
  config = srl_math.configure(args)
  config.mesh = "fsdp=1"
  config.data.holdout = 30
  config.data.max_prompt_tokens = 2048
  config.prompt.example = True
  config.prompt.open_think = True
  config.rollout.max_tokens = 768
  config.batch.prompts = 64
  config.batch.tokens_per_device = 16384
  config.algorithm.max_rounds = 3
  config.optimizer.lr = 1e-6  # small models and batches learn at twice the paper's rate
  config.train.steps = 300
  config.train.eval_every = 25
  config.train.save_every = 25
  config.eval.mode = "off"
  if args.tiny:
    srl_math.tiny(config)
  return config
