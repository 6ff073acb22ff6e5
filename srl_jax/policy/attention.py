"""The interface between a decoder layer and attention: `attend(q, k, v, state)`.

`state` determines which tokens the new ones attend to:

  Packed: rows of several sequences, in training; with branches, the responses of a group share
    its prompt.
  Padded: one sequence per row, for prefill.
  Chunk: the next tokens of one sequence per row, for prefill in several calls.
  Cached, CachedRows: one new token per response, for decoding. It attends to the keys of the
    prompt, which the group has once, and to the response's earlier ones.

Only the batch and the key/value heads are sharded, so attention needs no communication: `attend`
runs under shard_map, and a kernel for one device serves the mesh.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from srl_jax.policy import cpu, cudnn
from srl_jax.policy.kernels import NEGATIVE, causal, decodes_by_row, masked, merge, take_tokens
from srl_jax.policy.sharding import act_spec, has_mesh


class Lines(NamedTuple):
  """Packed rows as whole causal sequences, the only form that the attention kernels support.

  Each of the m lines of a row holds a prompt and one of its responses, so attention reads a prompt
  once for each response. The linear layers still see every token of the row once.

  Fields (int32):
    token_index_bml: indices into the t tokens of the row; -1 after a line's end.
    copy_index_btg: where the copies of each token are among the m * l entries of token_index_bml:
      one of a response's token, up to g of a prompt's; -1 for none.
  """

  token_index_bml: jax.Array
  copy_index_btg: jax.Array


class Packed(NamedTuple):
  """Which tokens of a row attend to each other.

  A token attends to the tokens of its segment at the same or an earlier position; with branches
  only to those in branch 0 (the shared prompt) and in its branch. Without a layout this rule is
  applied as a mask on all pairs of a row, which is the reference; the layouts compute the same with
  less work.

  Fields (int32): positions_bt; segments_bt, 0 for padding, 1.. for sequences or groups;
  branches_bt, 0 for a prompt, 1.. for its responses, or None; layout, Lines for the kernels of
  accelerators, cpu.Blocks, or None.
  """

  positions_bt: jax.Array
  segments_bt: jax.Array
  branches_bt: jax.Array | None = None
  layout: Lines | cpu.Blocks | None = None


class Padded(NamedTuple):
  """One sequence per row, padded at its end; lengths_b: int32, its tokens."""

  lengths_b: jax.Array


class Chunk(NamedTuple):
  """The keys and values of each row's tokens before `start`, which is where the new tokens begin.

  Fields:
    prompt_k_bkph, prompt_v_bkph: see prompt_cache; p is a multiple of the number of new tokens.
    start: int32 scalar, a multiple of the number of new tokens.
  """

  prompt_k_bkph: jax.Array
  prompt_v_bkph: jax.Array
  start: jax.Array


class Cached(NamedTuple):
  """The KV cache, for b prompts of g responses each.

  All responses write their newest token to the same `column` of a ring buffer of r entries,
  whenever they began, so a write is one slice. An entry belongs to a response if its age is below
  ages_bg.
  The ring buffers are stored in the operand layouts of the einsums that read them; otherwise XLA
  would transpose them at every token.

  Fields:
    prompt_k_bkph, prompt_v_bkph: see prompt_cache.
    lengths_b: int32, tokens of each prompt.
    k_bgkhr, v_bgkrh: the ring buffers.
    column: int32 scalar, the entry that the new token is written to.
    ages_bg: int32, tokens of each response, the newest included.
  """

  prompt_k_bkph: jax.Array
  prompt_v_bkph: jax.Array
  lengths_b: jax.Array
  k_bgkhr: jax.Array
  v_bgkrh: jax.Array
  column: jax.Array
  ages_bg: jax.Array


class CachedRows(NamedTuple):
  """Cached, with the ring buffers' keys stored as rows, which policy.decode_attention reads."""

  prompt_k_bkph: jax.Array
  prompt_v_bkph: jax.Array
  lengths_b: jax.Array
  k_bgkrh: jax.Array
  v_bgkrh: jax.Array
  column: jax.Array
  ages_bg: jax.Array


def cached_of(kernel: str, head_dim: int) -> type[Cached] | type[CachedRows]:
  """The state with which a policy decodes whose attention is `kernel` (of kernels.KERNELS)."""
  return CachedRows if decodes_by_row(kernel, head_dim) else Cached


# Shape letters of the fields of each state, for act_spec. The arrays of Packed and Padded have the
# batch as their first and only sharded dimension, so "b" is enough for all of them.
FIELDS = {
  Packed: "b",
  Padded: "b",
  Chunk: Chunk("bkph", "bkph", ""),
  Cached: Cached("bkph", "bkph", "b", "bgkhr", "bgkrh", "", "bg"),
  CachedRows: CachedRows("bkph", "bkph", "b", "bgkrh", "bgkrh", "", "bg"),
}
# Shape letters of what `attend` returns for a cache.
MEMORY = {
  Packed: ("btkh", "btkh"),
  Padded: ("btkh", "btkh"),
  Chunk: ("bkph", "bkph"),
  Cached: ("bgkhr", "bgkrh"),
  CachedRows: ("bgkrh", "bgkrh"),
}
BLOCK = 256  # entries of a long cache that the plain form of Cached reads at a time


def attend(q_btnh, k_btkh, v_btkh, state, kernel="xla"):
  """Attention of the new tokens.

  Args:
    q_btnh, k_btkh, v_btkh: queries, keys and values of the new tokens, rotary embedding applied.
      With Cached and CachedRows, t is the letter g: one new token of each of g responses.
    state: Packed, Padded, Chunk, Cached or CachedRows.
    kernel: of kernels.KERNELS, for Packed with Lines and for Padded.

  Returns:
    (out_btnh, memory): memory is (k_btkh, v_btkh), what a cache would keep; with Chunk it is
    (prompt_k_bkph, prompt_v_bkph) and with Cached (k_bgkhr, v_bgkrh), the new tokens written; with
    CachedRows (k_bgkrh, v_bgkrh).
  """
  # `run` sees one device's shard: its rows and its heads.
  kind = type(state)
  runs = {Packed: _packed, Padded: _padded, Chunk: _chunk, Cached: _cached, CachedRows: _by_rows}
  run = runs[kind]
  if not has_mesh():
    return run(q_btnh, k_btkh, v_btkh, state, kernel)
  tokens = tuple(map(act_spec, ("btnh", "btkh", "btkh")))
  return jax.shard_map(
    lambda *args: run(*args, kernel),
    in_specs=(*tokens, jax.tree.map(act_spec, FIELDS[kind])),
    out_specs=(tokens[0], tuple(map(act_spec, MEMORY[kind]))),
    # The calls of the kernels do not declare over which mesh axes their results vary.
    check_vma=kernel not in ("cudnn", "splash"),
  )(q_btnh, k_btkh, v_btkh, state)


def visible(state: Packed):
  """mask_bts: whether token t of a row sees token s (see Packed)."""
  positions, segments, branches = state.positions_bt, state.segments_bt, state.branches_bt
  # Axis 1 is the query t, axis 2 the key s.
  mask = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
  mask &= positions[:, None, :] <= positions[:, :, None]
  if branches is not None:
    mask &= (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
  return mask


def _packed(q_btnh, k_btkh, v_btkh, state, kernel):
  if isinstance(state.layout, Lines):
    run = (
      cudnn.attend_in_lines if kernel == "cudnn" else functools.partial(_by_lines, kernel=kernel)
    )
    out_btnh = run(q_btnh, k_btkh, v_btkh, state.layout)
  elif isinstance(state.layout, cpu.Blocks):
    out_btnh = cpu.attend_by_blocks(q_btnh, k_btkh, v_btkh, state.layout)
  else:
    out_btnh = masked(q_btnh, k_btkh, v_btkh, visible(state))
  return out_btnh, (k_btkh, v_btkh)


def _by_lines(q_btnh, k_btkh, v_btkh, lines: Lines, kernel):
  # Gathers the tokens of a row into its m lines of l, runs the kernel on b * m causal sequences and
  # gathers each token's output back. The letter s indexes the m * l entries of a row's lines.
  b, m, l = lines.token_index_bml.shape
  tokens_bs = lines.token_index_bml.reshape(b, m * l)
  first_btg = lines.copy_index_btg[:, :, :1]
  # All copies of a token attend to the same tokens, so only the first one's output is used below,
  # and only its query has a gradient. Keys and values of all copies are used.
  q = take_tokens(q_btnh, tokens_bs, first_btg)
  k = take_tokens(k_btkh, tokens_bs, lines.copy_index_btg)
  v = take_tokens(v_btkh, tokens_bs, lines.copy_index_btg)
  q, k, v = (x.reshape(b * m, l, *x.shape[2:]) for x in (q, k, v))
  lengths = (lines.token_index_bml >= 0).sum(axis=-1, dtype=jnp.int32).reshape(b * m)
  out = causal(q, k, v, lengths, kernel)
  out_bsnh = out.reshape(b, m * l, *out.shape[2:])

  # Entry s of the lines is the first copy of its token if the token's first index is s.
  first_bs = jnp.take_along_axis(first_btg[:, :, 0], jnp.maximum(tokens_bs, 0), axis=1)
  is_first_bs = (tokens_bs >= 0) & (first_bs == jnp.arange(m * l))
  return take_tokens(out_bsnh, first_btg[:, :, 0], jnp.where(is_first_bs, tokens_bs, -1)[..., None])


def _padded(q_btnh, k_btkh, v_btkh, state, kernel):
  return causal(q_btnh, k_btkh, v_btkh, state.lengths_b, kernel), (k_btkh, v_btkh)


def prompt_cache(k_btkh, v_btkh):
  """(prompt_k_bkph, prompt_v_bkph) of Cached, from what `attend` returned at prefill."""
  return k_btkh.transpose(0, 2, 1, 3), v_btkh.transpose(0, 2, 1, 3)


def _chunk(q_btnh, k_btkh, v_btkh, state, kernel):
  """Softmax over blocks of t keys: the new tokens' own first, then all blocks before `start`.

  The carry is the running maximum, the sum of exponentials and the weighted sum of values in
  float32, so the scores of one block exist at a time (Milakov and Gimelshein, "Online normalizer
  calculation for softmax").
  """
  del kernel  # plain XLA: the kernels take no queries that begin after their keys
  # Grouped-query attention: each of the k key/value heads serves n // k query heads (letter q).
  b, t, n, h = q_btnh.shape
  q_btkqh = q_btnh.reshape(b, t, k_btkh.shape[2], -1, h)
  k_bkth, v_bkth = prompt_cache(k_btkh, v_btkh)
  write = lambda buffer, new: jax.lax.dynamic_update_slice_in_dim(
    buffer, new.astype(buffer.dtype), state.start, axis=2
  )
  keys, values = write(state.prompt_k_bkph, k_bkth), write(state.prompt_v_bkph, v_bkth)

  equations = "btkqh,bksh->bkqts", "bkqts,bksh->bkqth"
  part = lambda *block: _part(q_btkqh, *block, *equations, dtype=jnp.float32)

  def add_block(i, carry):
    k_bksh, v_bksh = (jax.lax.dynamic_slice_in_dim(x, i * t, t, 2) for x in (keys, values))
    return merge(carry, part(k_bksh, v_bksh, True))

  # The new tokens' own block is causal; blocks before it are visible as a whole.
  carry = part(k_bkth, v_bkth, jnp.tri(t, dtype=bool))
  out, _, total = jax.lax.fori_loop(0, state.start // t, add_block, carry)
  out_btnh = (out / total[..., None]).transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)
  return out_btnh.astype(q_btnh.dtype), (keys, values)


def _cached(q_bgnh, k_bgkh, v_bgkh, state, kernel):
  del kernel  # plain XLA
  b, g, n, h = q_bgnh.shape
  k = k_bgkh.shape[2]
  keys = _write(state.k_bgkhr, k_bgkh, state.column, 4)
  values = _write(state.v_bgkrh, v_bgkh, state.column, 3)
  q = q_bgnh.reshape(b, g, k, n // k, h)
  prompt = _prompt_part(q, state.prompt_k_bkph, state.prompt_v_bkph, state.lengths_b)
  own = _own_part(q, keys, values, state.column, state.ages_bg)
  out, _, total = merge(prompt, own)
  out_bgkqh = (out / total[..., None]).astype(q.dtype)
  return out_bgkqh.reshape(b, g, n, h), (keys, values)


def _by_rows(q_bgnh, k_bgkh, v_bgkh, state, kernel):
  del kernel
  # Imported here, because other platforms do not need the import of Pallas.
  from srl_jax.policy import decode_attention

  keys = _write(state.k_bgkrh, k_bgkh, state.column, 3)
  values = _write(state.v_bgkrh, v_bgkh, state.column, 3)
  state = state._replace(k_bgkrh=keys, v_bgkrh=values)
  return decode_attention.decode(q_bgnh, *state), (keys, values)


def _write(ring, new, column, axis: int):
  """The ring buffers with the new tokens in their `column`."""
  new = jnp.expand_dims(new, axis).astype(ring.dtype)
  return jax.lax.dynamic_update_slice_in_dim(ring, new, column, axis=axis)


def ring_length(tokens: int) -> int:
  """Entries of a ring buffer for responses of at most `tokens`: a multiple of BLOCK if long."""
  return tokens if tokens <= 2 * BLOCK else -(-tokens // BLOCK) * BLOCK


def _block_length(entries: int) -> int:
  """Entries of a block of a cache; a short cache is one block, because a loop costs time too."""
  return BLOCK if entries > 2 * BLOCK and entries % BLOCK == 0 else entries


def _prompt_part(q_bgkqh, k_bkph, v_bkph, lengths_b):
  """_part of the prompts, up to the longest one. All responses of a group read one copy."""
  block = _block_length(k_bkph.shape[2])

  def part(i):
    keys, values = (jax.lax.dynamic_slice_in_dim(x, i * block, block, 2) for x in (k_bkph, v_bkph))
    in_prompt = i * block + jnp.arange(block) < lengths_b[:, None]
    equations = "bgkqh,bkph->bgkqp", "bgkqp,bkph->bgkqh"
    return _part(q_bgkqh, keys, values, in_prompt[:, None, None, None], *equations)

  blocks = k_bkph.shape[2] // block
  return _sum_parts(part, q_bgkqh, 0, -(-lengths_b.max() // block), blocks)


def _own_part(q_bgkqh, k_bgkhr, v_bgkrh, column, ages_bg):
  """_part of the ring buffers, of the blocks that have entries of the oldest response."""
  r = v_bgkrh.shape[3]
  block = _block_length(r)

  def part(i):
    keys = jax.lax.dynamic_slice_in_dim(k_bgkhr, i * block, block, 4)
    values = jax.lax.dynamic_slice_in_dim(v_bgkrh, i * block, block, 3)
    age = (column - i * block - jnp.arange(block)) % r  # of each entry: 0 for the newest
    in_own = age < ages_bg[:, :, None]
    equations = "bgkqh,bgkhr->bgkqr", "bgkqr,bgkrh->bgkqh"
    return _part(q_bgkqh, keys, values, in_own[:, :, None, None], *equations)

  # The entries of the oldest response begin at `first` and end at `column`, perhaps across the end
  # of the ring buffer. If both are in one block and the end is between them, all blocks have some.
  blocks, first = r // block, (column + 1 - ages_bg.max()) % r
  count = column // block - first // block + 1
  count = jnp.minimum(jnp.where(first > column, count + blocks, count), blocks)
  return _sum_parts(part, q_bgkqh, first // block, count, blocks)


def _part(q, keys, values, mask, score_equation, value_equation, dtype=None):
  """(out, most, total) in float32 of some entries, for each query: the softmax statistics.

  most is the largest score, total the sum of exp(score - most) and out that of the values times it,
  which is computed in `dtype` (None: that of the values, because XLA:CPU has no product of bfloat16
  for decoding that is float32).
  """
  scores = jnp.einsum(score_equation, q, keys, preferred_element_type=jnp.float32)
  scores = jnp.where(mask, scores / math.sqrt(q.shape[-1]), NEGATIVE)
  most = scores.max(axis=-1)
  exps = jnp.exp(scores - most[..., None])
  exps_of_values = exps.astype(values.dtype)
  out = jnp.einsum(value_equation, exps_of_values, values, preferred_element_type=dtype)
  return out.astype(jnp.float32), most, exps.sum(axis=-1)


def _sum_parts(part, q_bgkqh, first, count, blocks: int):
  """The merged part(first), part(first + 1), ...: `count` of `blocks`, which are in a ring."""
  if blocks == 1:
    return part(0)
  # Blocks are read in the loop alone: XLA would fuse a read before it with the write of the newest
  # tokens, and then copy the ring buffers.
  zeros = 0 * q_bgkqh.astype(jnp.float32)  # varies over the mesh as q does
  nothing = zeros, zeros[..., 0] + NEGATIVE, zeros[..., 0]
  add = lambda i, carry: merge(carry, part((first + i) % blocks))
  return jax.lax.fori_loop(0, count, add, nothing)
