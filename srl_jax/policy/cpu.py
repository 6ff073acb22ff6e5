"""Workarounds for slow programs of XLA:CPU; no accelerator runs any of them.

kernels.choose picks attention "cpu" where devices are CPUs, and nothing else does. The main path
neither needs this file nor is shaped by it.

Attention by blocks: on CPUs the cost of attention is the number of pairs of tokens, and most pairs
of a packed row are masked. Here prompts attend to themselves, and responses to their prompt and to
themselves; no prompt is copied.

Einsum: the gradient of a weight with its two factors in the order that XLA:CPU multiplies fastest.
Categorical: two random numbers for a token instead of one for each entry of the vocabulary.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srl_jax.policy import sharding
from srl_jax.policy.kernels import NEGATIVE, causal, query_parts, take_tokens


class Blocks(NamedTuple):
  """Packed rows of s groups as a block for each prompt and a block for each response.

  Fields (int32):
    prompt_index_bsp: indices into the t tokens of the row; -1 after a prompt's end.
    response_index_bsgr: the same of the g responses of each group.
    block_index_bt: where each token is in the s * p entries of prompt_index_bsp followed by the
      s * g * r of response_index_bsgr; -1 for padding.
  """

  prompt_index_bsp: jax.Array
  response_index_bsgr: jax.Array
  block_index_bt: jax.Array


def in_blocks(positions_bt, segments_bt, branches_bt, s: int, p: int, g: int, r: int) -> Blocks:
  """The blocks of packed rows, as numpy arrays.

  Args:
    positions_bt, segments_bt, branches_bt: int32 numpy arrays, see attention.Packed.
    s, p, g, r: groups of a row, tokens of a prompt's block, responses of a group, tokens of a
      response's block.
  """
  row, token = np.nonzero(segments_bt)
  segment, branch = segments_bt[row, token] - 1, branches_bt[row, token]
  prompt = branch == 0
  b, t = segments_bt.shape
  prompt_lengths_bs = np.zeros((b, s), int)
  np.add.at(prompt_lengths_bs, (row[prompt], segment[prompt]), 1)

  # A token's offset in its block: positions of a response continue those of its prompt.
  offset = positions_bt[row, token] - np.where(prompt, 0, prompt_lengths_bs[row, segment])
  # First entry of its block: s blocks of p for the prompts, then s * g blocks of r, group by group.
  start = np.where(prompt, segment * p, s * p + (segment * g + branch - 1) * r)
  block_index_bt = np.full((b, t), -1, np.int32)
  block_index_bt[row, token] = start + offset
  index = np.full((b, s * p + s * g * r), -1, np.int32)
  index[row, start + offset] = token
  return Blocks(
    index[:, : s * p].reshape(b, s, p), index[:, s * p :].reshape(b, s, g, r), block_index_bt
  )


def pairs_in_blocks(s: int, p: int, g: int, r: int) -> int:
  """Returns the number of pairs of a query and a key that attend_by_blocks computes for a row."""
  return s * (causal_pairs(p) + g * r * (p + r))


def causal_pairs(t: int) -> int:
  """Returns the number of pairs of a query and a key that kernels.masked computes for t tokens."""
  return sum((end - start) * end for start, end in query_parts(t))


def attend_by_blocks(q_btnh, k_btkh, v_btkh, blocks: Blocks):
  """out_btnh: attention of packed rows; the same as under the mask attention.visible."""
  b, s, p = blocks.prompt_index_bsp.shape
  g, r = blocks.response_index_bsgr.shape[2:]
  n, h = q_btnh.shape[2:]
  # Each token is in one block, so the two index arrays are each other's inverses.
  index_bs = jnp.concatenate(
    [blocks.prompt_index_bsp.reshape(b, s * p), blocks.response_index_bsgr.reshape(b, s * g * r)], 1
  )
  inverse_bt1 = blocks.block_index_bt[:, :, None]
  q, k, v = (take_tokens(x, index_bs, inverse_bt1) for x in (q_btnh, k_btkh, v_btkh))
  # Prompts: b * s causal sequences of p tokens.
  prompt_q, prompt_k, prompt_v = (x[:, : s * p].reshape(b * s, p, *x.shape[2:]) for x in (q, k, v))
  lengths = (blocks.prompt_index_bsp >= 0).sum(axis=-1, dtype=jnp.int32).reshape(b * s)
  prompt_out = causal(prompt_q, prompt_k, prompt_v, lengths, "cpu")

  # Responses: g of r tokens in each of b * s groups, with the keys of the group's prompt.
  q, k, v = (x[:, s * p :].reshape(b * s, g, r, *x.shape[2:]) for x in (q, k, v))
  in_prompt = jnp.arange(p) < lengths[:, None]
  real = (blocks.response_index_bsgr >= 0).reshape(b * s, g, 1, r)
  in_own = real & (jnp.arange(r)[:, None] >= jnp.arange(r))
  out = _responses(q, k, v, prompt_k, prompt_v, in_prompt, in_own)
  # Back to the order of the row; padding tokens get 0.
  out_bsnh = jnp.concatenate(
    [prompt_out.reshape(b, s * p, n, h), out.reshape(b, s * g * r, n, h)], axis=1
  )
  return take_tokens(out_bsnh, blocks.block_index_bt, index_bs[:, :, None])


def _responses(q, k, v, prompt_k, prompt_v, in_prompt, in_own):
  """Attention of responses to their prompt and to themselves.

  Letters: z, the groups of all rows; g, r, responses and their tokens (u for keys); k, q, key/value
  heads and the query heads of each.
  """
  z, g, r, n, h = q.shape
  q = q.reshape(z, g, r, k.shape[3], -1, h)
  f32 = dict(preferred_element_type=jnp.float32)
  to_prompt = jnp.einsum("zgrkqh,zpkh->zkqgrp", q, prompt_k, **f32) / math.sqrt(h)
  to_own = jnp.einsum("zgrkqh,zgukh->zkqgru", q, k, **f32) / math.sqrt(h)
  to_prompt = jnp.where(in_prompt[:, None, None, None, None], to_prompt, NEGATIVE)
  to_own = jnp.where(in_own[:, None, None], to_own, NEGATIVE)
  # One softmax over the prompt's p keys and the response's keys.
  probs = jax.nn.softmax(jnp.concatenate([to_prompt, to_own], axis=-1), axis=-1).astype(v.dtype)
  p = prompt_k.shape[1]
  out = jnp.einsum("zkqgrp,zpkh->zgrkqh", probs[..., :p], prompt_v)
  out += jnp.einsum("zkqgru,zgukh->zgrkqh", probs[..., p:], v)
  return out.reshape(z, g, r, n, h)


def einsum(letters: str, a, b, dtype=None):
  """sharding.einsum of an activation and a weight; on one device with a faster gradient.

  A mesh of several CPU devices exists in tests only, where it simulates accelerators; it runs
  sharding.einsum, so that those tests cover the code of accelerators.
  """
  if jax.sharding.get_abstract_mesh().size > 1:
    return sharding.einsum(letters, a, b, dtype)
  return _einsum(letters, a, b, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _einsum(letters, a, b, dtype):
  return sharding.einsum(letters, a, b, dtype)


def _einsum_fwd(letters, a, b, dtype):
  return _einsum(letters, a, b, dtype), (a, b)


def _einsum_bwd(letters, dtype, operands, grad):
  """JAX's rule for einsum, with the factors of the weight's gradient in the other order.

  JAX puts the gradient on the left. XLA:CPU transposes the left factor element by element, fused
  with what computes it, and the gradients of the mlp and of the logits are the widest arrays there
  are. With the activation on the left an update takes two thirds of the time.
  """
  del dtype
  a, b = operands
  (letters_a, letters_b), letters_out = letters.split("->")[0].split(","), letters.split("->")[1]
  grad_a = sharding.einsum_like(a, f"{letters_out},{letters_b}->{letters_a}", grad, b)
  grad_b = sharding.einsum_like(b, f"{letters_a},{letters_out}->{letters_b}", a, grad)
  return grad_a, grad_b


_einsum.defvjp(_einsum_fwd, _einsum_bwd)


BLOCK = 128  # entries of the vocabulary; see categorical


def categorical(key, logprobs_v):
  """Draws a token with these log-probs, as jax.random.categorical does; int32 scalar.

  It inverts the distribution function, first over blocks of the vocabulary and then inside one
  block. jax.random.categorical draws Gumbel noise for each entry of the vocabulary, which costs a
  CPU as much time as a small model's forward pass.
  """
  probs_v = jnp.exp(logprobs_v)
  # One cumulative sum over all v entries is slow; sums of BLOCK entries, then one block, are not.
  blocks_xy = jnp.pad(probs_v, (0, -len(probs_v) % BLOCK)).reshape(-1, BLOCK)
  shares = jax.random.uniform(key, (2,))
  block = _first_above(blocks_xy.sum(axis=1), shares[0])
  return block * BLOCK + _first_above(blocks_xy[block], shares[1])


def _first_above(weights_x, share):
  """The first index at which the cumulative sum of the weights exceeds that share of the total."""
  sums_x = jnp.cumsum(weights_x)
  above_x = (sums_x > share * sums_x[-1]) & (weights_x > 0)
  # Rounding can leave no entry above a share just below 1.
  return jnp.where(above_x.any(), above_x.argmax(), weights_x.argmax())
