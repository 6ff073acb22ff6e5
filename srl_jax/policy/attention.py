"""The one seam between a decoder layer and attention: `attend(q, k, v, state)`.

`state` says what the new tokens may see. `Packed`: rows of several sequences, in training and when
prompts are read; with `branches`, responses share the prompt of their group. `Cached`: one new
token a response against the keys of its prompt (held once for its group) and its own earlier ones.
Everything here is local to a device: batch and key/value heads are cut, nothing else, so `attend`
runs under shard_map and a kernel for one device is a kernel for the mesh.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from srl_jax.policy.sharding import act_spec, has_mesh

NEGATIVE = -1e30  # finite, so that a row of nothing but padding gives finite numbers


class Packed(NamedTuple):
  """Which tokens of a row see each other.

  A token sees those of its own segment at its own position or before; with branches only those of
  branch 0 (the shared prompt) and of its own branch.

  Fields (int32): positions_bt; segments_bt, 0 for padding, 1.. for sequences or groups;
  branches_bt, 0 for a prompt, 1.. for its responses, or None.
  """

  positions_bt: jax.Array
  segments_bt: jax.Array
  branches_bt: jax.Array | None = None


class Cached(NamedTuple):
  """Keys and values of the tokens read so far, for b prompts of g responses each.

  All responses write their newest token to the same `column` of a ring of r slots, whenever they
  began, so a write is one contiguous slice; a slot is a response's own if its age is below `ages`.

  Fields: prompt_k_bpkh, prompt_v_bpkh; lengths_b, tokens of each prompt (int32); k_bgrkh, v_bgrkh;
  column, scalar int32; ages_bg, tokens of each response, the newest included (int32).
  """

  prompt_k_bpkh: jax.Array
  prompt_v_bpkh: jax.Array
  lengths_b: jax.Array
  k_bgrkh: jax.Array
  v_bgrkh: jax.Array
  column: jax.Array
  ages_bg: jax.Array


PACKED_LETTERS = Packed("bt", "bt", "bt")
CACHED_LETTERS = Cached("bpkh", "bpkh", "b", "bgrkh", "bgrkh", "", "bg")


def attend(q_btnh, k_btkh, v_btkh, state):
  """Attention of the new tokens.

  Args:
    q_btnh, k_btkh, v_btkh: queries, keys and values of the new tokens, rotary embedding applied.
      With `Cached`, t is the letter g: one new token of each of g responses.
    state: Packed or Cached.

  Returns:
    (out_btnh, memory): with Packed, memory is (k_btkh, v_btkh), what a cache would keep; with
    Cached it is (k_bgrkh, v_bgrkh) with the new tokens written.
  """
  if isinstance(state, Packed):
    run, letters = _packed, PACKED_LETTERS
    memory = (act_spec("btkh"), act_spec("btkh"))
  else:
    run, letters = _cached, CACHED_LETTERS
    memory = (act_spec("bgrkh"), act_spec("bgrkh"))
  if not has_mesh():
    return run(q_btnh, k_btkh, v_btkh, state)
  specs = type(state)(*(None if x is None else act_spec(s) for x, s in zip(state, letters)))
  tokens = tuple(map(act_spec, ("btnh", "btkh", "btkh")))
  run = jax.shard_map(run, in_specs=(*tokens, specs), out_specs=(tokens[0], memory))
  return run(q_btnh, k_btkh, v_btkh, state)


def visible(state: Packed):
  """mask_bts: whether token t of a row sees token s (see Packed)."""
  positions, segments, branches = state
  mask = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
  mask &= positions[:, None, :] <= positions[:, :, None]
  if branches is not None:
    mask &= (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
  return mask


def _packed(q_btnh, k_btkh, v_btkh, state):
  b, t, n, h = q_btnh.shape
  k = k_btkh.shape[2]
  q = q_btnh.reshape(b, t, k, n // k, h)
  scores = jnp.einsum("btkqh,bskh->bkqts", q, k_btkh, preferred_element_type=jnp.float32)
  mask = visible(state)[:, None, None]
  probs = jax.nn.softmax(jnp.where(mask, scores / math.sqrt(h), NEGATIVE), axis=-1)
  out = jnp.einsum("bkqts,bskh->btkqh", probs.astype(v_btkh.dtype), v_btkh)
  return out.reshape(b, t, n, h), (k_btkh, v_btkh)


def _cached(q_bgnh, k_bgkh, v_bgkh, state):
  b, g, n, h = q_bgnh.shape
  k, r = k_bgkh.shape[2], state.k_bgrkh.shape[2]
  q = q_bgnh.reshape(b, g, k, n // k, h)
  write = lambda cache, new: jax.lax.dynamic_update_slice_in_dim(
    cache, new[:, :, None].astype(cache.dtype), state.column, axis=2
  )
  keys, values = write(state.k_bgrkh, k_bgkh), write(state.v_bgrkh, v_bgkh)

  f32 = dict(preferred_element_type=jnp.float32)
  prompt = jnp.einsum("bgkqh,bpkh->bgkqp", q, state.prompt_k_bpkh, **f32)
  own = jnp.einsum("bgkqh,bgrkh->bgkqr", q, keys, **f32)
  p = prompt.shape[-1]
  in_prompt = jnp.arange(p) < state.lengths_b[:, None]
  age = (state.column - jnp.arange(r)) % r  # of each slot: 0 for the one just written
  in_own = age < state.ages_bg[:, :, None]
  prompt = jnp.where(in_prompt[:, None, None, None], prompt / math.sqrt(h), NEGATIVE)
  own = jnp.where(in_own[:, :, None, None], own / math.sqrt(h), NEGATIVE)
  probs = jax.nn.softmax(jnp.concatenate([prompt, own], axis=-1), axis=-1).astype(values.dtype)
  out = jnp.einsum("bgkqp,bpkh->bgkqh", probs[..., :p], state.prompt_v_bpkh)
  out += jnp.einsum("bgkqr,bgrkh->bgkqh", probs[..., p:], values)
  return out.reshape(b, g, n, h), (keys, values)
