"""Makes the quickstart's base model: a short supervised warm-up on built-in problems, mostly easy.

  launch/run.sh configs/miniature_base.py                             about 4 minutes on 2 CPU cores
  python -m srl_jax.export --workdir=runs/miniature_base --output=base

The model learns both forms, single steps and whole solutions, from problems of one to six steps, of
which six are rare. Training stops when greedy decoding reproduces a given share of the single steps
of hard calibration problems exactly, and at least a quarter of that share at each position from
first to sixth. This is the paper's "baseline competence" (5.4): the model follows the format and
solves easy problems, but never a hard one, which takes six such steps in a row.
This file made configs/miniature/model.safetensors on one core (`taskset -c 0`). Two cores round
sums differently, which gives another model after hundreds of steps at this learning rate.
"""

import pathlib

from srl_jax.config import defaults, parse_arg

HERE = pathlib.Path(__file__).resolve().parent


def get_config(arg=None):
  args = parse_arg(arg, seed=1, stop_at=0.3)
  config = defaults()
  config.method = "sft"
  config.seed = args.seed
  config.model = str(HERE / "miniature")
  config.init_from = "random"
  config.dtype = "float32"
  config.mesh = "cpu"

  config.data.source = "arithmetic"
  config.data.path = "mix"
  config.data.holdout = 80  # of the calibration split, for the stop rule
  config.data.max_prompt_tokens = 96

  config.rollout.max_tokens = 32
  config.rollout.width = 128

  config.optimizer.lr = 3e-3  # 0.1M parameters from random weights
  config.optimizer.schedule = "constant"
  config.optimizer.b2 = 0.95

  config.batch.prompts = 160
  config.batch.tokens_per_device = 4096
  config.batch.remat = "none"

  config.train.steps = 900  # at most; the rule stops at about half of it
  config.train.stop_at = args.stop_at
  config.train.eval_every = 10
  config.train.save_every = 50
  config.train.keep = 1

  config.eval.mode = "off"
  return config
