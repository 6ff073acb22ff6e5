"""The update: micro-batches of packed rows in, new weights out. Two programs and no more.

`accumulate` adds one micro-batch's gradient and metrics to running sums, `apply` makes the
optimiser step. Every term of a loss carries its weight in the whole batch
(packing.Rows.loss_weights_bs), so how the batch was cut changes nothing. With one optimiser step
for each batch the old log-probs are the new ones without their gradient, and no pass is run for
them.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from srl_jax.learner import grpo
from srl_jax.learner.packing import Rows
from srl_jax.policy.model import Qwen2
from srl_jax.policy.sharding import act_spec, has_mesh, on_host, put, reshard, shards, spread

LEAST_CHUNK = 64


class Loss(NamedTuple):
  """What is minimised; static for a run.

  Fields:
    kind: "policy" (equation 1) or "likelihood" (SFT: minus the log-prob of the response).
    clip_low, clip_high: see grpo.
    importance_cap: of the importance weights; 0 = none.
    importance_level: "token" (grpo.importance_weights) or "sequence" (masked_importance_weights).
    kl: coefficient of grpo.kl_estimate.
    temperature: the sampling temperature, by which logits are divided here too.
    chunk: trained tokens whose logits exist at one time, on a device.
    remat: what the backward pass computes again, of policy.model.REMAT.
  """

  kind: str = "policy"
  clip_low: float = 0.2
  clip_high: float = 0.2
  importance_cap: float = 2.0
  importance_level: str = "token"
  kl: float = 0.0
  temperature: float = 1.0
  chunk: int = 512
  remat: str = "none"


def token_logprobs(model: Qwen2, rows: Rows, loss: Loss):
  """Log-prob of every trained token, and the entropy of its distribution.

  The logits of at most `loss.chunk` tokens a device exist at one time (LEAST_CHUNK a row, if it has
  many), in the backward pass too.

  Returns:
    (logprobs_bs, entropy_bs): float32; anything where loss_weights_bs is 0.
  """
  hidden_btd = model.hidden(
    rows.tokens_bt,
    rows.positions_bt,
    rows.segments_bt,
    rows.branches_bt,
    rows.layout,
    remat=loss.remat,
  )
  logits_of = model.loss_logits()
  b, s = rows.targets_bs.shape
  # Short, so that little is computed beyond a row's last trained token.
  chunk = min(s, max(min(loss.chunk, LEAST_CHUNK), loss.chunk * shards("b") // b))
  # Up to a multiple of the chunk, with padding, so that the chunk never shrinks to a divisor of s.
  hidden_index_bs, targets_bs, loss_weights_bs = (
    jnp.pad(x_bs, ((0, 0), (0, -s % chunk)))
    for x_bs in (rows.hidden_index_bs, rows.targets_bs, rows.loss_weights_bs)
  )

  @jax.checkpoint
  def of_chunk(start):
    cut = lambda x_bs: jax.lax.dynamic_slice_in_dim(x_bs, start, chunk, axis=1)
    trained = (cut(loss_weights_bs) > 0).any()
    # Trained tokens come first in a row, so the last chunks may be padding for all rows.
    return jax.lax.cond(trained, _of_tokens, _of_padding, cut(hidden_index_bs), cut(targets_bs))

  def _of_tokens(sources_bc, targets_bc):
    hidden_acd = spread(_take(hidden_btd, sources_bc))
    logits_acw = logits_of(hidden_acd) / loss.temperature
    norm_ac = jax.nn.logsumexp(logits_acw, axis=-1)
    # Compare and sum rather than gather: w may be cut over devices.
    vocabulary = jax.lax.broadcasted_iota(
      jnp.int32, logits_acw.shape, 2, out_sharding=act_spec("acw") if has_mesh() else None
    )
    chosen = vocabulary == reshard(targets_bc, act_spec("ac"))[:, :, None]
    logprobs_ac = jnp.where(chosen, logits_acw, 0.0).sum(axis=-1) - norm_ac
    probs = jax.lax.stop_gradient(jnp.exp(logits_acw - norm_ac[:, :, None]))
    entropy_ac = jax.lax.stop_gradient(norm_ac - (probs * logits_acw).sum(axis=-1))
    return tuple(reshard(x, act_spec("bc")) for x in (logprobs_ac, entropy_ac))

  def _of_padding(sources_bc, targets_bc):
    zeros = jnp.zeros_like(targets_bc, jnp.float32)
    return zeros, zeros

  _, parts = jax.lax.scan(lambda _, start: (None, of_chunk(start)), None, jnp.arange(0, s, chunk))
  join = lambda x_nbc: x_nbc.transpose(1, 0, 2).reshape(x_nbc.shape[1], -1)[:, :s]
  return tuple(map(join, parts))


def _take(hidden_btd, places_bs):
  """hidden_bsd: the states at the given places of each row."""
  take = jax.vmap(lambda hidden_td, places_s: hidden_td[places_s])
  if has_mesh():
    specs = (act_spec("btd"), act_spec("bs"))
    take = jax.shard_map(take, in_specs=specs, out_specs=act_spec("bsd"))
  return take(hidden_btd, places_bs)


def _sequence_sums(values_bs, rows: Rows):
  """sums_bs: at each trained token the sum of the values over its whole response."""

  def of_row(values_s, sources_s, branches_t):
    # A response's first token is predicted from its prompt, whose branch is 0.
    response_s = jnp.cumsum(branches_t[sources_s] == 0)
    return jax.ops.segment_sum(values_s, response_s, values_s.shape[0] + 1)[response_s]

  of_rows = jax.vmap(of_row)
  if has_mesh():
    specs = (act_spec("bs"), act_spec("bs"), act_spec("bt"))
    of_rows = jax.shard_map(of_rows, in_specs=specs, out_specs=act_spec("bs"))
  return of_rows(values_bs, rows.hidden_index_bs, rows.branches_bt)


def batch_loss(model, rows: Rows, old_logprobs_bs, reference_logprobs_bs, loss: Loss):
  """This micro-batch's part of the loss.

  Args:
    old_logprobs_bs: None for the new ones without their gradient.
    reference_logprobs_bs: None without a KL term.

  Returns:
    (loss, (sums, logprobs_bs)): sums is {metric: sum over trained tokens}, with the loss itself and
    the number of tokens; metrics are means once they are divided by `tokens`.
  """
  logprobs_bs, entropy_bs = token_logprobs(model, rows, loss)
  mask = rows.loss_weights_bs > 0
  inside = lambda x: jnp.where(mask, x, 0.0)
  logprobs = inside(logprobs_bs)
  if loss.kind == "likelihood":
    value = -(logprobs * rows.loss_weights_bs).sum()
    terms = {"logprob": logprobs}
  else:
    old = jax.lax.stop_gradient(logprobs) if old_logprobs_bs is None else inside(old_logprobs_bs)
    weights = None
    if loss.importance_cap and loss.importance_level == "sequence":
      gaps_bs = _sequence_sums(inside(old - rows.sampler_logprobs_bs), rows)
      weights = grpo.masked_importance_weights(gaps_bs, loss.importance_cap)
    elif loss.importance_cap:
      weights = grpo.importance_weights(old, rows.sampler_logprobs_bs, loss.importance_cap)
    objective, ratio, clipped = grpo.clipped_objective(
      logprobs,
      old,
      rows.advantages_bs,
      clip_low=loss.clip_low,
      clip_high=loss.clip_high,
      weights=weights,
    )
    terms = {"ratio": ratio, "clip_fraction": clipped, "logprob": logprobs}
    terms["importance_weight"] = jnp.ones_like(logprobs) if weights is None else weights
    if loss.kl:
      kl = grpo.kl_estimate(logprobs, inside(reference_logprobs_bs))
      objective -= loss.kl * kl
      terms["kl"] = kl
    value = -(objective * rows.loss_weights_bs).sum()
  terms["entropy"] = entropy_bs
  sums = {name: inside(term).sum() for name, term in terms.items()}
  return value, (sums | {"loss": value, "tokens": mask.sum()}, logprobs_bs)


@functools.partial(jax.jit, static_argnames="loss", donate_argnames=("grads", "totals"))
def accumulate(
  grads, totals, model, rows: Rows, old_logprobs_bs, reference_logprobs_bs, loss: Loss
):
  """Adds one micro-batch: (grads, totals, logprobs_bs)."""

  def loss_of(model):
    return batch_loss(model, rows, old_logprobs_bs, reference_logprobs_bs, loss)

  value, pull_back, (sums, logprobs_bs) = jax.vjp(loss_of, model, has_aux=True)
  # The backward pass adds to the sums themselves: there is no second tree of gradients.
  sums_of_grads = jax.tree.map(jax.new_ref, grads)
  pull_back.with_refs(sums_of_grads)(jnp.ones_like(value))
  totals = jax.tree.map(jnp.add, totals, sums)
  return jax.tree.map(jax.freeze, sums_of_grads), totals, logprobs_bs


@functools.partial(jax.jit, static_argnames="tx", donate_argnames=("model", "moments"))
def apply(tx: optax.GradientTransformation, model, moments, grads):
  """One optimiser step: (model, moments, norm of the gradient before clipping)."""
  updates, moments = tx.update(grads, moments, model)
  return optax.apply_updates(model, updates), moments, optax.tree.norm(grads)


@functools.partial(jax.jit, static_argnames="loss")
def score(model, rows: Rows, loss: Loss):
  """logprobs_bs of rows under `model`."""
  return token_logprobs(model, rows, loss)[0]


@functools.partial(jax.jit, static_argnames="tx")
def init_moments(tx: optax.GradientTransformation, model):
  """The optimiser's state, laid out as the weights are."""
  return tx.init(model)


@functools.partial(jax.jit, static_argnames="names")
def zeros(model, names: tuple[str, ...]):
  """(gradients, totals) to which accumulate adds; names are those of the totals."""
  return jax.tree.map(jnp.zeros_like, model), {name: jnp.float32(0) for name in names}


def on_device(rows: Rows) -> Rows:
  """Host rows -> the mesh that is set."""
  return jax.tree.map(lambda x: put(x, "b"), rows)


def start_step(tx, model, moments, batches: Sequence[Rows], loss: Loss, old=None, reference=None):
  """Starts one optimiser step over micro-batches and does not wait for it.

  Args:
    tx: the optimiser.
    model, moments: given away; use the returned ones.
    batches: micro-batches on the device (on_device), of one shape.
    old: logprobs_bs of each micro-batch before the batch's first step, or None where this is it.
    reference: logprobs_bs of each under the reference policy, or None.

  Returns:
    (model, moments, sums, logprobs), on the device: sums are for step_metrics, logprobs is the
    logprobs_bs of each micro-batch before this step.
  """
  names = ["loss", "tokens", "entropy", "logprob"]
  if loss.kind == "policy":
    names += ["ratio", "clip_fraction", "importance_weight"] + (["kl"] if loss.kl else [])
  (grads, sums), logprobs = zeros(model, tuple(names)), []
  for i, rows in enumerate(batches):
    pick = lambda given: None if given is None else given[i]  # noqa: B023
    grads, sums, part = accumulate(grads, sums, model, rows, pick(old), pick(reference), loss=loss)
    logprobs.append(part)
  model, moments, norm = apply(tx, model, moments, grads)
  return model, moments, sums | {"grad_norm": norm}, logprobs


def step_metrics(sums: dict) -> dict[str, float]:
  """Waits for a step; its metrics as floats.

  Raises FloatingPointError when the loss or the gradient is not finite.
  """
  totals = {name: float(value) for name, value in jax.device_get(sums).items()}
  metrics = {name: totals.pop(name) for name in ("loss", "grad_norm")}
  if not np.isfinite(list(metrics.values())).all():
    raise FloatingPointError(f"loss {metrics['loss']}, gradient norm {metrics['grad_norm']}")
  tokens = max(totals.pop("tokens"), 1.0)
  return metrics | {name: total / tokens for name, total in totals.items()}


def train_step(tx, model, moments, batches: Sequence[Rows], loss: Loss, old=None, reference=None):
  """start_step, waited for: (model, moments, step_metrics, logprobs as numpy arrays)."""
  model, moments, sums, logprobs = start_step(tx, model, moments, batches, loss, old, reference)
  return model, moments, step_metrics(sums), list(map(on_host, logprobs))
