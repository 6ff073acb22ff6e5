"""A short SFT on the built-in problems, for models that do not follow the response format.

  launch/run.sh configs/format_warmup.py:model=HuggingFaceTB/SmolLM2-135M-Instruct
  launch/run.sh configs/srl_math.py:model=...,tiny --config.init_from=runs/format_warmup

The paper requires a student that follows instructions (5.4): if no response has the think block,
all get the same penalty, no group is kept, and SRL has no signal. Qwen2.5-7B-Instruct does not need
this warm-up; models of 135M and 0.5B parameters do. The problems are additions and subtractions, so
that the model learns the format (a think block, then one step) and nothing about the real data.
"""

from srl_jax.config import defaults, parse_arg


def get_config(arg=None):
  args = parse_arg(arg, model="Qwen/Qwen2.5-0.5B-Instruct", steps=24)
  config = defaults()
  config.method = "sft"
  config.model = args.model
  config.dtype = "float32"
  config.mesh = "cpu"

  config.data.source = "arithmetic"
  config.data.path = "mix:2000"  # single steps and whole solutions, with monologues
  config.data.holdout = 4
  config.data.max_prompt_tokens = 320

  config.rollout.max_tokens = 320
  config.rollout.width = 8

  config.optimizer.lr = 5e-5
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup = 0.1
  config.optimizer.b2 = 0.95

  config.batch.prompts = 8
  config.batch.tokens_per_device = 1280
  config.batch.logprob_chunk = 128
  config.batch.remat = "none"

  config.train.steps = args.steps
  config.train.eval_every = 0
  config.train.save_every = args.steps
  config.train.keep = 1

  config.eval.mode = "off"
  return config
