"""Attention of one decode step on GPUs: two small Pallas kernels, which end at the real lengths.

The first kernel reads a group's prompt, once for all responses of the group, and the second the
entries of each response in its ring buffer, across the end of the buffer. They are merged by their
softmax statistics (Milakov and Gimelshein, "Online normalizer calculation for softmax"; the parts
of a prompt as in Dao et al., "Flash-Decoding for long-context inference").

The kernels use Pallas' Triton backend. It needs sizes that are powers of 2, and at least 16 in
matrix products; masks exclude what is added to reach them. Letters: m, the query heads of all
responses of a group that share a key/value head; x, the parts of a prompt; s, entries of a cache.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from srl_jax.policy.kernels import NEGATIVE, merge

BLOCK = 64  # entries of a cache that a kernel reads at a time
LONGEST_PART = 256  # most entries of a prompt that one program reads
PROGRAMS = 264  # programs that occupy a card: two on each of an H100's 132 multiprocessors
FEWEST, MOST = 16, 128  # rows of queries of one program; more do not fit its registers
STAGES = 3  # blocks of a cache that are being read at a time


def decode(
  q_bgnh,
  prompt_k_bkph,
  prompt_v_bkph,
  lengths_b,
  k_bgkrh,
  v_bgkrh,
  column,
  ages_bg,
  interpret=False,
):
  """out_bgnh: attention of a new token of each response to its prompt and its own tokens.

  Args:
    q_bgnh: the queries of the new tokens; h is a power of 2 and at least 16.
    prompt_k_bkph, prompt_v_bkph: keys and values of the prompts.
    lengths_b: int32, tokens of each prompt, at least 1.
    k_bgkrh, v_bgkrh: the ring buffers, the new tokens included.
    column: int32 scalar, the entry of the new token in all ring buffers.
    ages_bg: int32, tokens of each response, at least 1: the entries up to `column`.
    interpret: whether Pallas' interpreter runs the kernels, on any platform.
  """
  b, g, n, h = q_bgnh.shape
  k = prompt_k_bkph.shape[1]
  q_bgkqh = q_bgnh.reshape(b, g, k, n // k, h)
  parts = _prompt_parts(q_bgkqh, prompt_k_bkph, prompt_v_bkph, lengths_b, interpret)
  out = _own(q_bgkqh, parts, lengths_b, k_bgkrh, v_bgkrh, column, ages_bg, interpret)
  return out.reshape(b, g, n, h)


class _Parts(NamedTuple):
  """The softmax statistics of each part of each prompt, float32; undefined beyond its length.

  Fields:
    out_bkxmh: the sum of the values times exp(score - most).
    most_bkxm, total_bkxm: the largest score, and the sum of exp(score - most).
    length: entries of a prompt in a part.
  """

  out_bkxmh: jax.Array
  most_bkxm: jax.Array
  total_bkxm: jax.Array
  length: int


def _prompt_parts(q_bgkqh, k_bkph, v_bkph, lengths_b, interpret) -> _Parts:
  b, g, k, heads, h = q_bgkqh.shape
  p, m = k_bkph.shape[2], g * heads
  rows = min(max(FEWEST, pl.next_power_of_2(m)), MOST)
  row_blocks = pl.cdiv(m, rows)
  length = part_length(p, b * k * row_blocks)
  x = pl.cdiv(p, length)
  prompt = pl.BlockSpec((None, None, p, h), lambda b, k, i, x: (b, k, 0, 0))
  statistic = pl.BlockSpec((None, None, None, m), lambda b, k, i, x: (b, k, x, 0))
  found = pl.pallas_call(
    functools.partial(_prompt_kernel, rows=rows, length=length),
    grid=(b, k, row_blocks, x),
    in_specs=[
      pl.BlockSpec((1,), lambda b, k, i, x: (b,)),
      pl.BlockSpec((None, g, None, heads, h), lambda b, k, i, x: (b, 0, k, 0, 0)),
      prompt,
      prompt,
    ],
    out_specs=[
      pl.BlockSpec((None, None, None, m, h), lambda b, k, i, x: (b, k, x, 0, 0)),
      statistic,
      statistic,
    ],
    out_shape=[
      jax.ShapeDtypeStruct((b, k, x, m, h), jnp.float32),
      jax.ShapeDtypeStruct((b, k, x, m), jnp.float32),
      jax.ShapeDtypeStruct((b, k, x, m), jnp.float32),
    ],
    # A warp for each 16 rows, the height of its matrix instruction.
    compiler_params=triton.CompilerParams(num_warps=max(4, rows // 16), num_stages=STAGES),
    interpret=interpret,
    name="decode_prompt",
  )(lengths_b, q_bgkqh, k_bkph, v_bkph)
  return _Parts(*found, length)


def part_length(p: int, programs: int) -> int:
  """Entries of a prompt that one program reads.

  Args: p, most entries of a prompt; programs, those that would read a whole prompt each.
  """
  length = min(LONGEST_PART, pl.cdiv(p, pl.cdiv(PROGRAMS, programs)))
  return pl.cdiv(length, BLOCK) * BLOCK


def _prompt_kernel(
  length_ref, q_gqh, k_ph, v_ph, out_mh, most_m, total_m, *, rows: int, length: int
):
  """One part of a prompt, for `rows` of the m query heads."""
  g, heads, h = q_gqh.shape
  first_row, first = pl.program_id(2) * rows, pl.program_id(3) * length
  end = jnp.minimum(first + length, length_ref[0])
  real_m = first_row + jnp.arange(rows) < g * heads
  # Row m is query head m % heads of response m // heads.
  row_m1 = jnp.minimum(first_row + jnp.arange(rows), g * heads - 1)[:, None]
  q_mh = q_gqh[row_m1 // heads, row_m1 % heads, jnp.arange(h)[None]]

  def add(i, carry):
    at = first + i * BLOCK
    return _add_block(carry, q_mh, k_ph, v_ph, at, at + jnp.arange(BLOCK) < end)

  @pl.when(first < end)
  def _():
    out, most, total = jax.lax.fori_loop(0, pl.cdiv(end - first, BLOCK), add, _nothing(rows, h))
    at = pl.ds(first_row, rows)
    triton.store(out_mh.at[at, :], out, mask=real_m[:, None])
    triton.store(most_m.at[at], most, mask=real_m)
    triton.store(total_m.at[at], total, mask=real_m)


def _own(q_bgkqh, parts, lengths_b, k_bgkrh, v_bgkrh, column, ages_bg, interpret):
  """out_bgkqh: attention to the ring buffers, merged with the parts of the prompts."""
  b, g, k, heads, h = q_bgkqh.shape
  x, m = parts.most_bkxm.shape[2:]
  r = k_bgkrh.shape[3]
  of_head = pl.BlockSpec((None, None, None, heads, h), lambda b, g, k: (b, g, k, 0, 0))
  ring = pl.BlockSpec((None, None, None, r, h), lambda b, g, k: (b, g, k, 0, 0))
  statistic = pl.BlockSpec((None, None, x, m), lambda b, g, k: (b, k, 0, 0))
  return pl.pallas_call(
    functools.partial(_own_kernel, length=parts.length),
    grid=(b, g, k),
    in_specs=[
      pl.BlockSpec((1,), lambda b, g, k: (0,)),
      pl.BlockSpec((1,), lambda b, g, k: (b,)),
      pl.BlockSpec((None, 1), lambda b, g, k: (b, g)),
      of_head,
      ring,
      ring,
      pl.BlockSpec((None, None, x, m, h), lambda b, g, k: (b, k, 0, 0, 0)),
      statistic,
      statistic,
    ],
    out_specs=of_head,
    out_shape=jax.ShapeDtypeStruct(q_bgkqh.shape, q_bgkqh.dtype),
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=STAGES),
    interpret=interpret,
    name="decode_own",
  )(column.reshape(1), lengths_b, ages_bg, q_bgkqh, k_bgkrh, v_bgkrh, *parts[:3])


def _own_kernel(
  column_ref, length_ref, age_ref, q_qh, k_rh, v_rh, out_xmh, most_xm, total_xm, out_qh, *, length
):
  """The query heads of one response that share a key/value head."""
  (heads, h), r = q_qh.shape, k_rh.shape[0]
  rows = max(FEWEST, pl.next_power_of_2(heads))
  real_q = jnp.arange(rows) < heads
  q_mh = triton.load(q_qh.at[pl.ds(0, rows), :], mask=real_q[:, None], other=0)

  # The response's rows of the parts of its prompt.
  at = pl.ds(pl.program_id(1) * heads, rows)

  def add_part(i, carry):
    most = triton.load(most_xm.at[i, at], mask=real_q, other=NEGATIVE)
    total = triton.load(total_xm.at[i, at], mask=real_q, other=0)
    out = triton.load(out_xmh.at[i, at, :], mask=real_q[:, None], other=0)
    return merge(carry, (out, most, total))

  carry = jax.lax.fori_loop(0, pl.cdiv(length_ref[0], length), add_part, _nothing(rows, h))

  # Its entries of the ring buffer begin at `oldest` and end at `column`, perhaps across the end of
  # the buffer. `count` blocks of BLOCK entries from that of `oldest` on contain them; if both ends
  # are in one block and the buffer's end is between them, that is all blocks.
  column, age = column_ref[0], age_ref[0]
  oldest = jnp.where(age > column + 1, column + 1 + r, column + 1) - age
  blocks, begin = pl.cdiv(r, BLOCK), oldest // BLOCK
  count = column // BLOCK - begin + 1
  count = jnp.where(oldest > column, count + blocks, count)

  def add(i, carry):
    at = jax.lax.rem(begin + i, blocks) * BLOCK
    index = at + jnp.arange(BLOCK)
    since = jnp.where(index > column, column + r, column) - index  # 0 for the newest entry
    return _add_block(carry, q_mh, k_rh, v_rh, at, (since < age) & (index < r))

  out, _, total = jax.lax.fori_loop(0, jnp.minimum(count, blocks), add, carry)
  out = (out / total[:, None]).astype(out_qh.dtype)
  triton.store(out_qh.at[pl.ds(0, rows), :], out, mask=real_q[:, None])


def _nothing(rows: int, h: int):
  """(out_mh, most_m, total_m) of no entries."""
  zeros = jnp.zeros((rows, h), jnp.float32)
  return zeros, jnp.full(rows, NEGATIVE, jnp.float32), jnp.zeros(rows, jnp.float32)


def _add_block(carry, q_mh, k_sh, v_sh, at, seen_s):
  """The carry (out_mh, most_m, total_m) with BLOCK entries from `at` on, where seen_s is True."""
  out, most, total = carry
  read = lambda ref: triton.load(ref.at[pl.ds(at, BLOCK), :], mask=seen_s[:, None], other=0)
  k, v = read(k_sh), read(v_sh)
  # float32 must not be rounded to TF32; products of bfloat16 are exact anyway.
  exact = dict(precision=jax.lax.Precision.HIGHEST)
  scores = triton.dot(q_mh, k, trans_b=True, **exact) / math.sqrt(q_mh.shape[1])
  scores = jnp.where(seen_s, scores, NEGATIVE)
  larger = jnp.maximum(most, scores.max(axis=1))
  exps = jnp.exp(scores - larger[:, None])
  # The sums so far are relative to the old maximum.
  shrink = jnp.exp(most - larger)
  out = out * shrink[:, None] + triton.dot(exps.astype(v.dtype), v, **exact)
  return out, larger, total * shrink + exps.sum(axis=1)
