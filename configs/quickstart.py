"""The paper in miniature: SRL on hard chains of additions, from a small warmed-up base.

  launch/run.sh configs/quickstart.py              5 to 7 minutes on 2 CPU cores
  launch/run.sh configs/quickstart.py:seed=1       another seed

The base (configs/miniature/, made by configs/miniature_base.py) follows the format and solves easy
problems; of the hard ones it solves, turn by turn and by greedy decoding, next to none.
"""

import pathlib

from srl_jax.config import defaults, parse_arg

HERE = pathlib.Path(__file__).resolve().parent


def get_config(arg=None):
  args = parse_arg(arg, seed=0, steps=600)
  config = defaults()
  config.seed = args.seed
  config.model = str(HERE / "miniature")
  config.dtype = "float32"
  config.mesh = "cpu"

  config.data.source = "arithmetic"
  config.data.path = "hard:400"
  config.data.keep_last_step = True  # or boxing the answer is never trained
  config.data.holdout = 100
  config.data.max_prompt_tokens = 96

  # Above the paper's 1.0: where eight rollouts make the same mistake nothing is learned from it.
  config.rollout.temperature = 1.2
  config.rollout.max_tokens = 32
  config.rollout.width = 128

  config.algorithm.max_rounds = 3

  config.optimizer.lr = 4e-4
  config.optimizer.schedule = "linear"
  config.optimizer.warmup = 0.08
  config.optimizer.b2 = 0.95

  config.batch.prompts = 16
  config.batch.tokens_per_device = 4608  # 16 groups of up to 288 tokens
  config.batch.remat = "none"

  config.train.steps = args.steps
  config.train.eval_every = 150
  config.train.save_every = 150
  config.train.keep = 1

  config.eval.mode = "stepwise"
  config.eval.benchmark = "arithmetic"
  config.eval.max_tokens = 32
  config.eval.max_turns = 12  # twice as many as a solution has steps
  return config
