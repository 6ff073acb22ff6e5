"""A short SFT on your own problems that teaches the format of a single step, before SRL.

  launch/run.sh configs/form_warmup.py:model=FOLDER,data=FILE,problem=...,solution=...
  launch/run.sh configs/one_card.py:model=FOLDER,data=FILE,problem=...,solution=... \\
    --config.init_from=runs/form_warmup

For models that miss the format in spite of prompt.example and prompt.open_think. The responses to
learn are the expert's steps after short monologues that name quantities of the step, or sentences
of a column of reasoning (reasoning=COLUMN); docs/form.md shows twenty. The learning rate and
the number of steps are small, so that the model learns the format and little else. Arguments: those
of srl_math.py, and steps.
"""

from configs import one_card
from srl_jax.config import parse_arg


def get_config(arg=None):
  args = parse_arg(arg, **(one_card.ARGUMENTS | dict(reasoning="", steps=32)))
  config = one_card.configure(args)
  config.method = "sft"
  config.data.learn_steps = True
  config.data.fields.reasoning = args.reasoning
  config.optimizer.lr = 1e-5  # with 32 steps of 8 prompts, enough for the format
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup = 0.1
  config.batch.prompts = 8
  config.train.steps = args.steps
  config.train.eval_every = 0  # the result is judged by SRL's share of well-formed responses
  config.train.save_every = args.steps
  config.train.keep = 1
  return config
