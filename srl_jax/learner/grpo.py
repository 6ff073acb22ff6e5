"""Group relative policy optimisation, equation (1) of the SRL paper: pure functions of arrays.

J = mean over sequences of the mean over tokens of min(rho A, clip(rho, 1 - low, 1 + high) A),
rho = exp(logprobs - old_logprobs),  A = (r - mean(r)) / (std(r) + eps) within a group.

The two means are sums of per-token loss weights (`token_weights`), so a batch can be cut into
micro-batches in any way. `token_loss` is what training minimises and `policy_loss` is the same for
arrays of one sequence a row.
"""

import jax.numpy as jnp
import numpy as np

from srl_jax import config as configs
from srl_jax.errors import UserError


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
  # float64: a rounding error of float32 in the mean, 1e-8, is not small against eps = 1e-6, and
  # would give equal rewards an advantage.
  centred = rewards - rewards.mean(axis=-1, keepdims=True)
  if scale == "none":
    return centred.astype(np.float32)
  return (centred / (rewards.std(axis=-1, keepdims=True, ddof=ddof) + eps)).astype(np.float32)


def token_weights(lengths_b, aggregate: str, max_tokens: int):
  """The weight in the loss of each token of a sequence; numpy or jax arrays.

  Weights are taken over all sequences of an optimiser step, so sums over any cut into micro-batches
  give the same loss.

  Args:
    lengths_b: response tokens of each sequence.
    aggregate: "sequence": mean over the tokens of each sequence, then over sequences (eq. 1);
      "token": mean over all tokens (verl, DAPO); "constant": sum over tokens / max_tokens, then
      mean over sequences (Dr.GRPO).
    max_tokens: the constant of "constant".

  Returns:
    weight_b; the weights of all tokens add up to 1, except for "constant".
  """
  # clip(1): an empty response or an empty batch has no tokens to weigh, and must not divide by 0.
  b = lengths_b.shape[0]
  if aggregate == "sequence":
    return 1.0 / (b * lengths_b.clip(1))
  if aggregate == "token":  # 0 * lengths_b broadcasts the one weight to all sequences
    return 0.0 * lengths_b + 1.0 / lengths_b.sum().clip(1)
  if aggregate == "constant":
    return 0.0 * lengths_b + 1.0 / (b * max_tokens)
  allowed = ", ".join(configs.CHOICES["algorithm.aggregate"])
  raise UserError(f"aggregate: {aggregate!r} is unknown; use one of {allowed}")


def token_loss(
  logprobs,
  old_logprobs,
  advantages,
  loss_weights,
  importance_weights=None,
  reference_logprobs=None,
  *,
  algorithm,
):
  """Returns the loss to minimise, a sum over tokens, and its terms; arrays of any one shape.

  The loss is minus equation (1), the objective of each token multiplied by its importance
  weight, plus algorithm.kl times the KL estimate, which has no importance weight.

  Args:
    logprobs: of the policy in training, float32.
    old_logprobs: of the policy before the batch's first step; constants for the gradient.
    advantages: of each token's sequence.
    loss_weights: of each token, see token_weights; 0 marks prompts and padding, where the other
      arrays may hold anything.
    importance_weights: of each token, see importance_weights, or None.
    reference_logprobs: of the reference policy; needed where algorithm.kl is not 0.
    algorithm: the config's group `algorithm`; clip_low, clip_high and kl are read here.

  Returns:
    (loss, terms): loss is a scalar; terms are per-token arrays to report, 0 where the loss weight
    is 0: ratio, clip_fraction (1 where the minimum took the clipped term), importance_weight and,
    with a KL term, kl.
  """
  trained = loss_weights > 0
  inside = lambda x: jnp.where(trained, x, 0.0)
  # Masked before exp: an inf at padding, times a loss weight of 0, would make the gradient nan.
  logprobs, old_logprobs = inside(logprobs), inside(old_logprobs)
  ratio = jnp.exp(logprobs - old_logprobs)
  unclipped = ratio * advantages
  clipped = jnp.clip(ratio, 1 - algorithm.clip_low, 1 + algorithm.clip_high) * advantages
  # The minimum is pessimistic: it removes the gain from a ratio beyond the clip range, never the
  # loss, so a token that became too likely with a negative advantage still has its gradient.
  objective = jnp.minimum(unclipped, clipped)
  if importance_weights is None:
    importance_weights = jnp.ones_like(ratio)
  objective *= importance_weights
  terms = {
    "ratio": ratio,
    "clip_fraction": clipped < unclipped,
    "importance_weight": importance_weights,
  }
  if algorithm.kl:
    terms["kl"] = kl_estimate(logprobs, inside(reference_logprobs))
    # After the importance weights, which correct the policy gradient alone.
    objective -= algorithm.kl * terms["kl"]
  loss = -inside(objective * loss_weights).sum()
  return loss, {name: inside(term) for name, term in terms.items()}


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
  """Returns `token_loss` of one sequence a row; other options of the loss have their defaults.

  Args:
    logprobs_bt, old_logprobs_bt: float32, anything where the mask is 0.
    advantages_b: one for each sequence.
    mask_bt: 1 at response tokens, 0 at prompt and padding.
    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
    weights_bt: importance weights, or None.
    aggregate: see token_weights; "constant" divides by the width t of the arrays.

  Returns:
    (loss, metrics): scalars; metrics are means over response tokens: ratio, clip_fraction.
  """
  # The defaults of a run's config, so that this function and training agree.
  mask_bt = mask_bt > 0
  algorithm = configs.defaults().algorithm.unlock()
  algorithm.update(clip_low=clip_low, clip_high=clip_high)
  weight_b = token_weights(mask_bt.sum(axis=1), aggregate, mask_bt.shape[1])
  loss, terms = token_loss(
    logprobs_bt,
    old_logprobs_bt,
    advantages_b[:, None],
    weight_b[:, None] * mask_bt,
    weights_bt,
    algorithm=algorithm,
  )
  tokens = mask_bt.sum().clip(1)
  return loss, {name: terms[name].sum() / tokens for name in ("ratio", "clip_fraction")}


def importance_weights(old_logprobs, sampler_logprobs, cap: float):
  """Truncated importance weights min(old / sampler, cap) of tokens, constants for the gradient.

  They correct for an engine that samples from slightly other probabilities than the trainer's
  (other kernels, other precision, older weights). The cap bounds the variance of the estimate at
  the price of a bias.
  """
  return jnp.minimum(jnp.exp(old_logprobs - sampler_logprobs), cap)


def kl_estimate(logprobs, reference_logprobs):
  """Schulman's k3 estimate of KL(policy || reference) at each sampled token; >= 0."""
  difference = reference_logprobs - logprobs
  return jnp.exp(difference) - difference - 1
