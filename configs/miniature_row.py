"""A row of the paper's Tables 1 to 3 in miniature: the quickstart with another method.

  launch/table_miniature.sh                                     all rows, several seeds, the table
  launch/run.sh configs/miniature_row.py:row=rlvr,seed=1 --workdir=runs/rlvr     one of them

Base model, training problems, optimiser and batch are the quickstart's. Rows of whole solutions
(rlvr, one_step) have all six steps in one response. On a CPU their optimiser steps take about eight
times as long as SRL's (six times the tokens, longer rows, more groups dropped by the filter), so
they take an eighth of the steps: about the same compute.

Arguments: row; seed; steps, the number of SRL's steps if not the quickstart's. row=rlvr_after is
RLVR as a second stage, with half the steps and a third of the learning rate (with
--config.init_from=WORKDIR); srl_long is SRL with the compute of SRL and that stage; srl_words,
srl_edit and srl_chrf are SRL with another similarity.
"""

from configs import quickstart
from srl_jax.config import parse_arg
from srl_jax.errors import UserError

ROWS = ("srl", "srl_no_filter", "srl_long", "one_step", "rlvr", "rlvr_after")
ROWS += ("sft_outline", "sft_reasoning")
SIMILARITIES = {f"srl_{name}": name for name in ("words", "edit", "chrf")}
ROWS += tuple(SIMILARITIES)
WHOLE_COST = 8  # cost of an optimiser step with whole solutions, in steps of SRL


def get_config(arg=None):
  args = parse_arg(arg, row="srl", seed=0, steps=0)
  if args.row not in ROWS:
    raise UserError(f"config argument row={args.row!r}: use one of {', '.join(ROWS)}")
  config = quickstart.get_config(f"seed={args.seed}")
  config.train.steps = args.steps or config.train.steps
  config.eval.benchmark = ""  # the table's script measures the finished runs
  config.eval.samples = 8  # of avg@8 and pass@8 in the table
  if args.row.startswith("srl"):
    config.algorithm.dynamic_sampling = args.row != "srl_no_filter"
    config.train.steps += config.train.steps // 2 if args.row == "srl_long" else 0
    config.reward.similarity = SIMILARITIES.get(args.row, config.reward.similarity)
  elif args.row.startswith("sft"):
    whole_solutions(config)
    supervised(config, reasoning=args.row == "sft_reasoning")
  else:
    whole_solutions(config)
    config.method = "one_step" if args.row == "one_step" else "rlvr"
    config.train.steps //= WHOLE_COST
    config.batch.tokens_per_device = 352  # two responses per row: attention is quadratic in a row
    # The paper's value. At the quickstart's 1.2, hardly any response of six steps would be correct.
    config.rollout.temperature = 1.0
  if config.method == "rlvr":
    config.algorithm.std_epsilon = 0.0  # rewards are 0 or 1: keep every group in which any differ
  if args.row == "rlvr_after":
    config.optimizer.lr /= 3
    config.train.steps //= 2
  config.train.steps = max(1, config.train.steps)
  config.train.eval_every = config.train.save_every = max(1, config.train.steps // 4)
  return config


def whole_solutions(config):
  """Sets the limits for responses with all steps: the expert's have at most 146 tokens."""
  config.rollout.max_tokens = config.eval.max_tokens = 160
  config.eval.mode = "whole"


def supervised(config, reasoning: bool):
  """Changes a config to SFT on the expert's solutions: a quarter of SRL's steps, ten epochs."""
  config.method = "sft"
  config.train.steps //= 4
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup = 0.3
  if reasoning:
    config.data.path = config.data.path.replace("hard", "reasoned")
