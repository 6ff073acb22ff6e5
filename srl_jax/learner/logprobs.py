"""Log-probs of the trained tokens of packed rows, in chunks: all logits at once do not fit."""

import jax
import jax.numpy as jnp

from srl_jax.learner.rows import Rows
from srl_jax.policy.model import Qwen2
from srl_jax.policy.sharding import act_spec, gather_batch, has_mesh, reshard, shards

MIN_CHUNK = 64  # trained tokens of a row, however many rows share a device's chunk


def token_logprobs(model: Qwen2, rows: Rows, *, temperature: float, chunk: int, remat: str):
  """Returns the log-prob of every trained token and the entropy of its distribution.

  Args:
    model: the policy.
    rows: one micro-batch on the device.
    temperature: the logits are divided by it, as in sampling.
    chunk: trained tokens of a device with logits in memory at one time, in the backward pass too
      (MIN_CHUNK for each row, if a device has many rows).
    remat: of policy.model.REMAT, selects what the backward pass recomputes.

  Returns:
    (logprobs_bs, entropy_bs): float32; undefined where loss_weights_bs is 0.
  """
  hidden_btd = model.hidden(
    rows.tokens_bt, rows.positions_bt, rows.segments_bt, rows.branches_bt, rows.layout, remat=remat
  )
  logits_of = model.loss_logits()
  b, s = rows.targets_bs.shape
  # Chunks of a row's share, so that little is computed beyond its last trained token.
  chunk = min(s, max(min(chunk, MIN_CHUNK), chunk * shards("b") // b))
  # Padded to a multiple of the chunk: a divisor of s could be 1.
  pad = lambda x_bs: jnp.pad(x_bs, ((0, 0), (0, -s % chunk)))
  index_bs, targets_bs = pad(rows.hidden_index_bs), pad(rows.targets_bs)
  trained_bs = pad(rows.loss_weights_bs) > 0

  # Recomputed in the backward pass: the scan would otherwise keep the logits of every chunk.
  @jax.checkpoint
  def of_chunk(start):
    cut = lambda x_bs: jax.lax.dynamic_slice_in_dim(x_bs, start, chunk, axis=1)
    # Trained tokens are at the start of a row, so the last chunks may be padding in all rows.
    return jax.lax.cond(
      cut(trained_bs).any(), of_tokens, of_padding, cut(index_bs), cut(targets_bs)
    )

  def of_tokens(index_bc, targets_bc):
    hidden_acd = gather_batch(_take(hidden_btd, index_bc))
    logprobs_ac, entropy_ac = _choose(logits_of(hidden_acd) / temperature, targets_bc)
    return reshard(logprobs_ac, act_spec("bc")), reshard(entropy_ac, act_spec("bc"))

  def of_padding(index_bc, targets_bc):
    zeros_bc = jnp.zeros_like(targets_bc, jnp.float32)
    return zeros_bc, zeros_bc

  _, chunks = jax.lax.scan(lambda _, start: (None, of_chunk(start)), None, jnp.arange(0, s, chunk))
  # [chunks, b, chunk] -> [b, s], without the padding to a multiple of the chunk.
  join = lambda x_nbc: x_nbc.transpose(1, 0, 2).reshape(b, -1)[:, :s]
  return tuple(map(join, chunks))


@jax.custom_vjp
def _choose(logits_acw, targets_bc):
  """(log-prob of the targets, entropy), both float32 [a, c]; letters: sharding.ACT_AXES.

  The entropy has no gradient. That of a log-prob, 1 at its target minus the probabilities, is
  computed from the logits; JAX would write all exponentials of the sum to memory and read them.
  """
  return _choose_fwd(logits_acw, targets_bc)[0]


def _choose_fwd(logits_acw, targets_bc):
  # log p(w) = logits - norm, entropy = -sum p log p = norm - sum p logits.
  norm_ac = jax.nn.logsumexp(logits_acw, axis=-1)
  targets_ac = reshard(targets_bc, act_spec("ac"))
  chosen_acw = _is_target(logits_acw, targets_ac)
  logprobs_ac = jnp.where(chosen_acw, logits_acw, 0.0).sum(axis=-1) - norm_ac
  probs_acw = jnp.exp(logits_acw - norm_ac[:, :, None])
  entropy_ac = norm_ac - (probs_acw * logits_acw).sum(axis=-1)
  return (logprobs_ac, entropy_ac), (logits_acw, targets_ac, norm_ac)


def _choose_bwd(kept, grads):
  logits_acw, targets_ac, norm_ac = kept
  probs_acw = jnp.exp(logits_acw - norm_ac[:, :, None])
  one_acw = _is_target(logits_acw, targets_ac).astype(logits_acw.dtype)
  return (one_acw - probs_acw) * grads[0][:, :, None], None


_choose.defvjp(_choose_fwd, _choose_bwd)


def _is_target(logits_acw, targets_ac):
  # Compare instead of a gather or scatter: w may be sharded, and these would replicate it.
  vocabulary_acw = jax.lax.broadcasted_iota(
    jnp.int32, logits_acw.shape, 2, out_sharding=act_spec("acw") if has_mesh() else None
  )
  return vocabulary_acw == targets_ac[:, :, None]


def _take(hidden_btd, index_bs):
  """Gathers hidden_btd at index_bs along t -> hidden_bsd, on each device for its own rows."""
  take = jax.vmap(lambda hidden_td, index_s: hidden_td[index_s])
  if has_mesh():
    specs = (act_spec("btd"), act_spec("bs"))
    take = jax.shard_map(take, in_specs=specs, out_specs=act_spec("bsd"))
  return take(hidden_btd, index_bs)
