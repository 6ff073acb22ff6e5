"""A row of the paper's Tables 1 to 3 in miniature: the quickstart with another method.

  launch/table_miniature.sh                                     all rows, several seeds, the table
  launch/run.sh configs/miniature_row.py:row=rlvr,seed=1 --workdir=runs/rlvr     one of them

Base, training problems, optimiser and batch are the quickstart's. Rows of whole solutions (rlvr,
one_step) ask for all six steps in one response. On a CPU such an optimiser step takes about eight
times as long as one of SRL (six times the tokens, longer rows, more groups that the filter drops),
so they make an eighth of the steps: about the same compute.

Arguments: row; seed; steps, of SRL, where the quickstart's are too many. row=rlvr_after is RLVR as
a second stage, half as long and more careful (with --config.init_from=WORKDIR), and srl_long is SRL
for as long as SRL and that stage together.
"""

from configs import quickstart
from srl_jax.config import parse_arg
from srl_jax.errors import UserError

ROWS = ("srl", "srl_no_filter", "srl_long", "one_step", "rlvr", "rlvr_after")
ROWS += ("sft_outline", "sft_reasoning")
WHOLE_COST = 8  # a step of whole solutions, in steps of SRL


def get_config(arg=None):
  args = parse_arg(arg, row="srl", seed=0, steps=0)
  if args.row not in ROWS:
    raise UserError(f"config argument row={args.row!r}: use one of {', '.join(ROWS)}")
  config = quickstart.get_config(f"seed={args.seed}")
  config.train.steps = args.steps or config.train.steps
  config.eval.benchmark = ""  # the table measures the finished runs
  config.eval.samples = 8  # of avg@8 and pass@8 in the table
  if args.row.startswith("srl"):
    config.algorithm.dynamic_sampling = args.row != "srl_no_filter"
    config.train.steps += config.train.steps // 2 if args.row == "srl_long" else 0
  elif args.row.startswith("sft"):
    whole_solutions(config)
    supervised(config, reasoning=args.row == "sft_reasoning")
  else:
    whole_solutions(config)
    config.method = "one_step" if args.row == "one_step" else "rlvr"
    config.train.steps //= WHOLE_COST
    config.batch.tokens_per_device = 352  # rows of two responses: attention grows with the square
    # The paper's: over six steps the quickstart's would leave hardly one response right.
    config.rollout.temperature = 1.0
  if config.method == "rlvr":
    config.algorithm.std_epsilon = 0.0  # eight rewards of 0 or 1: any that differ
  if args.row == "rlvr_after":
    config.optimizer.lr /= 3
    config.train.steps //= 2
  config.train.steps = max(1, config.train.steps)
  config.train.eval_every = config.train.save_every = max(1, config.train.steps // 4)
  return config


def whole_solutions(config):
  """One response for all steps, as long as the expert's with scratch work (146 tokens at most)."""
  config.rollout.max_tokens = config.eval.max_tokens = 160
  config.eval.mode = "whole"


def supervised(config, reasoning: bool):
  """SFT on the expert's solutions: ten epochs of them at the quickstart's number of steps."""
  config.method = "sft"
  config.train.steps //= 4
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup = 0.3
  if reasoning:
    config.data.path = config.data.path.replace("hard", "reasoned")
