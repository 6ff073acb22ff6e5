"""Group relative policy optimisation, equation (1) of the SRL paper: pure functions of arrays.

J = mean over sequences of the mean over tokens of min(rho A, clip(rho, 1 - low, 1 + high) A),
rho = exp(logprobs - old_logprobs),  A = (r - mean(r)) / std(r) within a group.
"""

import jax.numpy as jnp
import numpy as np

from srl_jax.errors import UserError

AGGREGATES = ("sequence", "token", "constant")


def group_advantages(rewards_bg, *, ddof: int = 0, eps: float = 1e-6, scale: str = "std"):
  """Advantages of the responses of each group, on the host.

  Args:
    rewards_bg: b groups of g rewards.
    ddof: 0 divides by the population's standard deviation, as the filter of dynamic sampling
      does; 1 by the sample's, as verl and TRL do.
    eps: added to the standard deviation.
    scale: "std" (GRPO), or "none" for r - mean alone (Dr.GRPO, arXiv 2503.20783).

  Returns:
    float32 advantages_bg.

  Raises UserError for an unknown scale or a group of no more than ddof responses.
  """
  rewards = np.asarray(rewards_bg, np.float64)
  if scale not in ("std", "none"):
    raise UserError(f"advantage_scale: {scale!r} is unknown; use 'std' or 'none'")
  if rewards.shape[-1] <= ddof:
    raise UserError(
      f"advantage_ddof: {ddof} needs groups of more than {ddof} responses, got {rewards.shape[-1]}"
    )
  centred = rewards - rewards.mean(axis=-1, keepdims=True)
  if scale == "none":
    return centred.astype(np.float32)
  return (centred / (rewards.std(axis=-1, keepdims=True, ddof=ddof) + eps)).astype(np.float32)


def token_shares(lengths_b, aggregate: str, max_tokens: int):
  """The share of the loss that each token of a sequence has; numpy or jax arrays.

  Because shares know the whole batch, sums over any cut into micro-batches give the same loss.

  Args:
    lengths_b: response tokens of each sequence.
    aggregate: "sequence": mean over the tokens of each sequence, then over sequences (eq. 1);
      "token": mean over all tokens (verl, DAPO); "constant": sum over tokens / max_tokens, then
      mean over sequences (Dr.GRPO).
    max_tokens: the constant of "constant".

  Returns:
    share_b.
  """
  b = lengths_b.shape[0]
  if aggregate == "sequence":
    return 1.0 / (b * lengths_b.clip(1))
  if aggregate == "token":
    return 0.0 * lengths_b + 1.0 / lengths_b.sum().clip(1)
  if aggregate == "constant":
    return 0.0 * lengths_b + 1.0 / (b * max_tokens)
  raise UserError(f"aggregate: {aggregate!r} is unknown; use one of {', '.join(AGGREGATES)}")


def clipped_objective(logprobs, old_logprobs, advantages, *, clip_low, clip_high, weights=None):
  """What GRPO maximises at each token; all arrays of one shape.

  Args:
    logprobs: of the policy in training, float32.
    old_logprobs: of the policy before the batch's first step; no gradient flows into it.
    advantages: of each token's sequence.
    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
    weights: importance weights of the tokens, or None; constants.

  Returns:
    (objective, ratio, clipped): clipped tells where the clip is what the minimum took.
  """
  ratio = jnp.exp(logprobs - old_logprobs)
  free = ratio * advantages
  bound = jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
  objective = jnp.minimum(free, bound)
  if weights is not None:
    objective *= weights
  return objective, ratio, bound < free


def policy_loss(
  logprobs_bt,
  old_logprobs_bt,
  advantages_b,
  mask_bt,
  *,
  clip_low,
  clip_high,
  weights_bt=None,
  aggregate="sequence",
):
  """The loss to minimise, minus equation (1) with KL coefficient 0, for one sequence a row.

  Args:
    logprobs_bt, old_logprobs_bt: float32, anything where the mask is 0.
    advantages_b: one for each sequence.
    mask_bt: 1 at response tokens, 0 at prompt and padding.
    clip_low, clip_high, weights_bt: see clipped_objective.
    aggregate: see token_shares; "constant" divides by the width t of the arrays.

  Returns:
    (loss, metrics): scalars; metrics are means over response tokens: ratio, clip_fraction.
  """
  mask = mask_bt > 0
  inside = lambda x: jnp.where(mask, x, 0.0)
  objective, ratio, clipped = clipped_objective(
    inside(logprobs_bt),
    inside(old_logprobs_bt),
    advantages_b[:, None],
    clip_low=clip_low,
    clip_high=clip_high,
    weights=None if weights_bt is None else inside(weights_bt),
  )
  shares_b = token_shares(mask.sum(axis=1), aggregate, mask.shape[1])
  loss = -(inside(objective) * shares_b[:, None]).sum()
  mean = lambda x: inside(x).sum() / mask.sum().clip(1)
  return loss, {"ratio": mean(ratio), "clip_fraction": mean(clipped)}


def importance_weights(old_logprobs, sampler_logprobs, cap: float):
  """Truncated importance weights min(old / sampler, cap) of tokens, constants for the gradient.

  They correct for the engine having sampled from slightly other probabilities than the trainer's
  (other kernels, other precision, older weights).
  """
  return jnp.minimum(jnp.exp(old_logprobs - sampler_logprobs), cap)


def masked_importance_weights(sequence_gaps, cap: float):
  """Importance weights of whole sequences, 0 for those above the cap: they are left out.

  The other choice to `importance_weights`: unbiased below the cap, where weights of single tokens
  are not, but noisier the longer the sequence (TRL's sequence_mask; "sequence-level MIS" of Liu
  et al., When Speed Kills Stability, 2025).

  Args:
    sequence_gaps: sum of old_logprobs - sampler_logprobs over each sequence.
  """
  ratio = jnp.exp(sequence_gaps)
  return jnp.where(ratio <= cap, ratio, 0.0)


def kl_estimate(logprobs, reference_logprobs):
  """Schulman's k3 estimate of KL(policy || reference) at each sampled token; >= 0."""
  difference = reference_logprobs - logprobs
  return jnp.exp(difference) - difference - 1
