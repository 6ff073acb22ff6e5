"""The optimiser of a config: gradient clipping, then AdamW with float32 moments."""

import optax


def learning_rate(optimizer, steps: int) -> optax.Schedule:
  """Learning rate as a function of the optimiser's step.

  Args:
    optimizer: config group with lr, schedule (constant, cosine, or linear decay to 0) and warmup (a
      share of all steps in [0, 1), risen to linearly).
    steps: optimiser steps of the whole run.
  """
  warmup = round(optimizer.warmup * steps)
  # The decay takes the steps after the warmup, so that it reaches 0 at the last step.
  rest = max(1, steps - warmup)
  after = {
    "constant": optax.constant_schedule(optimizer.lr),
    "cosine": optax.cosine_decay_schedule(optimizer.lr, rest),
    "linear": optax.linear_schedule(optimizer.lr, 0.0, rest),
  }[optimizer.schedule]
  # The first step must move the weights, so the rise begins above 0.
  rise = optax.linear_schedule(optimizer.lr / (warmup + 1), optimizer.lr, warmup)
  return optax.join_schedules([rise, after], [warmup]) if warmup else after


def make(optimizer, steps: int) -> optax.GradientTransformation:
  """The transformation for a run of `steps` optimiser steps; optimizer as in learning_rate.

  Norms and biases are decayed like every other weight, as in the paper's framework (verl).
  """
  return optax.chain(
    optax.clip_by_global_norm(optimizer.grad_norm),
    optax.adamw(
      learning_rate(optimizer, steps),
      b1=0.9,
      b2=optimizer.b2,
      weight_decay=optimizer.weight_decay,
    ),
  )
