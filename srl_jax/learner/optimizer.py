"""The optimiser of a config: gradient clipping, then AdamW with float32 moments."""

import optax


def of_run(config, steps: int) -> optax.GradientTransformation:
  """The transformation of a run of `config` of that many optimiser steps."""
  return make(config.optimizer, steps, config.lora.lr_factor if config.lora.rank else 1.0)


def learning_rate(optimizer, steps: int, factor: float = 1.0) -> optax.Schedule:
  """Learning rate as a function of the optimiser's step.

  Args:
    optimizer: config group with lr, schedule (constant, cosine, or linear decay to 0) and warmup (a
      share of all steps in [0, 1), risen to linearly).
    steps: optimiser steps of the whole run.
    factor: of lr, that of adapters.
  """
  lr = factor * optimizer.lr
  warmup = round(optimizer.warmup * steps)
  # The decay takes the steps after the warmup, so that it reaches 0 at the last step.
  rest = max(1, steps - warmup)
  after = {
    "constant": optax.constant_schedule(lr),
    "cosine": optax.cosine_decay_schedule(lr, rest),
    "linear": optax.linear_schedule(lr, 0.0, rest),
  }[optimizer.schedule]
  # The first step must move the weights, so the rise begins above 0.
  rise = optax.linear_schedule(lr / (warmup + 1), lr, warmup)
  return optax.join_schedules([rise, after], [warmup]) if warmup else after


def make(optimizer, steps: int, factor: float = 1.0) -> optax.GradientTransformation:
  """The transformation for a run of `steps` optimiser steps; arguments as of learning_rate.

  Norms and biases are decayed like every other weight, as in the paper's framework (verl).
  """
  return optax.chain(
    optax.clip_by_global_norm(optimizer.grad_norm),
    optax.adamw(
      learning_rate(optimizer, steps, factor),
      b1=0.9,
      b2=optimizer.b2,
      weight_decay=optimizer.weight_decay,
    ),
  )
