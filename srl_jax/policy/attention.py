"""The one seam between a decoder layer and attention: `attend(q, k, v, state)`.

`state` says what the new tokens may see. `Packed`: rows of several sequences, in training; with
`branches`, responses share the prompt of their group. `Padded`: one sequence a row, when prompts
are read. `Cached`: one new token a response against the keys of its prompt (held once for its
group) and its own earlier ones. Everything here is local to a device: batch and key/value heads are
cut, nothing else, so `attend` runs under shard_map and a kernel for one device is a kernel for the
mesh.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from srl_jax.policy.kernels import NEGATIVE, causal, masked
from srl_jax.policy.sharding import act_spec, has_mesh


class Packed(NamedTuple):
  """Which tokens of a row see each other.

  A token sees those of its own segment at its own position or before; with branches only those of
  branch 0 (the shared prompt) and of its own branch.

  That is the whole rule, and with the first three fields alone it is applied as a mask on all pairs
  of a row. Two layouts come to the same with less work; linear layers see every token once in any.
  Lines, for kernels, which know whole sequences only: each line is a prompt and one response.
  Blocks, for plain XLA: prompts attend to themselves, responses to their prompt and to themselves.

  Fields (int32): positions_bt; segments_bt, 0 for padding, 1.. for sequences or groups;
  branches_bt, 0 for a prompt, 1.. for its responses, or None.
  Lines, or None: lines_bml, the place in the row of each token of m lines, -1 after a line's end;
  copies_btg, where a token stands among the m * l places of lines_bml, once or (a prompt's) up to g
  times, -1 for none.
  Blocks, or None: prompts_bsp and responses_bsgr, the places of the tokens of s groups, -1 after an
  end; homes_bt, where a token stands among the s * p places of prompts_bsp and the s * g * r of
  responses_bsgr behind them, -1 for padding.
  """

  positions_bt: jax.Array
  segments_bt: jax.Array
  branches_bt: jax.Array | None = None
  lines_bml: jax.Array | None = None
  copies_btg: jax.Array | None = None
  prompts_bsp: jax.Array | None = None
  responses_bsgr: jax.Array | None = None
  homes_bt: jax.Array | None = None


class Padded(NamedTuple):
  """One sequence a row, from its first place on; lengths_b: int32, its tokens."""

  lengths_b: jax.Array


class Cached(NamedTuple):
  """Keys and values of the tokens read so far, for b prompts of g responses each.

  All responses write their newest token to the same `column` of a ring of r slots, whenever they
  began, so a write is one slice; a slot is a response's own if its age is below `ages`. They lie as
  the products with them want it (XLA puts a prompt's left and a response's own right), or they
  would be turned around for every token.

  Fields: prompt_k_bkph, prompt_v_bkhp (see prompt_cache); lengths_b, tokens of each prompt (int32);
  k_bgkhr, v_bgkrh; column, scalar int32; ages_bg, tokens of each response, the newest included
  (int32).
  """

  prompt_k_bkph: jax.Array
  prompt_v_bkhp: jax.Array
  lengths_b: jax.Array
  k_bgkhr: jax.Array
  v_bgkrh: jax.Array
  column: jax.Array
  ages_bg: jax.Array


LETTERS = {
  Packed: Packed("bt", "bt", "bt", "bml", "btg", "bsp", "bsgr", "bt"),
  Padded: Padded("b"),
  Cached: Cached("bkph", "bkhp", "b", "bgkhr", "bgkrh", "", "bg"),
}


def attend(q_btnh, k_btkh, v_btkh, state, kernel="xla"):
  """Attention of the new tokens.

  Args:
    q_btnh, k_btkh, v_btkh: queries, keys and values of the new tokens, rotary embedding applied.
      With `Cached`, t is the letter g: one new token of each of g responses.
    state: Packed, Padded or Cached.
    kernel: of kernels.KERNELS, for Packed with lines and for Padded.

  Returns:
    (out_btnh, memory): memory is (k_btkh, v_btkh), what a cache would keep; with Cached it is
    (k_bgkhr, v_bgkrh) with the new tokens written.
  """
  run = {Packed: _packed, Padded: _padded, Cached: _cached}[type(state)]
  if not has_mesh():
    return run(q_btnh, k_btkh, v_btkh, state, kernel)
  letters = LETTERS[type(state)]
  specs = type(state)(*(None if x is None else act_spec(s) for x, s in zip(state, letters)))
  tokens = tuple(map(act_spec, ("btnh", "btkh", "btkh")))
  memory = tuple(map(act_spec, ("bgkhr", "bgkrh") if run is _cached else ("btkh", "btkh")))
  return jax.shard_map(
    lambda *args: run(*args, kernel),
    in_specs=(*tokens, specs),
    out_specs=(tokens[0], memory),
    check_vma=kernel == "xla",  # the kernels' own calls do not say how their results vary
  )(q_btnh, k_btkh, v_btkh, state)


def visible(state: Packed):
  """mask_bts: whether token t of a row sees token s (see Packed)."""
  positions, segments, branches, *_ = state
  mask = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
  mask &= positions[:, None, :] <= positions[:, :, None]
  if branches is not None:
    mask &= (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
  return mask


def _packed(q_btnh, k_btkh, v_btkh, state, kernel):
  if state.lines_bml is not None:
    out_btnh = _by_lines(q_btnh, k_btkh, v_btkh, state, kernel)
  elif state.prompts_bsp is not None:
    out_btnh = _by_blocks(q_btnh, k_btkh, v_btkh, state)
  else:
    out_btnh = masked(q_btnh, k_btkh, v_btkh, visible(state))
  return out_btnh, (k_btkh, v_btkh)


def _by_lines(q_btnh, k_btkh, v_btkh, state, kernel):
  b, m, l = state.lines_bml.shape
  lines, copies = state.lines_bml.reshape(b, m * l), state.copies_btg
  # Only the first copy of a token is read from below, so only it brings queries a gradient.
  rows = [_to_places(q_btnh, lines, copies[:, :, :1])]
  rows += [_to_places(x, lines, copies) for x in (k_btkh, v_btkh)]
  q, k, v = (x.reshape(b * m, l, *x.shape[2:]) for x in rows)
  lengths = (state.lines_bml >= 0).sum(axis=-1, dtype=jnp.int32).reshape(b * m)
  out = causal(q, k, v, lengths, kernel)
  return _from_places(out.reshape(b, m * l, *out.shape[2:]), lines, copies[:, :, 0])


def _by_blocks(q_btnh, k_btkh, v_btkh, state):
  b, s, p = state.prompts_bsp.shape
  g, r = state.responses_bsgr.shape[2:]
  n, k, h = q_btnh.shape[2], k_btkh.shape[2], k_btkh.shape[3]
  places = [state.prompts_bsp.reshape(b, s * p), state.responses_bsgr.reshape(b, s * g * r)]
  places, homes = jnp.concatenate(places, axis=1), state.homes_bt
  laid = [_to_places(x, places, homes[:, :, None]) for x in (q_btnh, k_btkh, v_btkh)]
  of_prompt = [x[:, : s * p].reshape(b * s, p, *x.shape[2:]) for x in laid]
  lengths = (state.prompts_bsp >= 0).sum(axis=-1, dtype=jnp.int32).reshape(b * s)
  prompt_out = causal(*of_prompt, lengths, "xla").reshape(b, s * p, n, h)

  own = [x[:, s * p :].reshape(b * s, g, r, *x.shape[2:]) for x in laid]
  q = own[0].reshape(b * s, g, r, k, n // k, h)
  f32 = dict(preferred_element_type=jnp.float32)
  to_prompt = jnp.einsum("zgrkqh,zpkh->zkqgrp", q, of_prompt[1], **f32)
  to_own = jnp.einsum("zgrkqh,zgukh->zkqgru", q, own[1], **f32)
  in_prompt = (jnp.arange(p) < lengths[:, None])[:, None, None, None, None]
  real = (state.responses_bsgr >= 0).reshape(b * s, g, 1, r)
  in_own = (real & (jnp.arange(r)[:, None] >= jnp.arange(r)))[:, None, None]
  scores = [jnp.where(in_prompt, to_prompt / math.sqrt(h), NEGATIVE)]
  scores += [jnp.where(in_own, to_own / math.sqrt(h), NEGATIVE)]
  probs = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(v_btkh.dtype)
  out = jnp.einsum("zkqgrp,zpkh->zgrkqh", probs[..., :p], of_prompt[2])
  out += jnp.einsum("zkqgru,zgukh->zgrkqh", probs[..., p:], own[2])
  out = jnp.concatenate([prompt_out, out.reshape(b, s * g * r, n, h)], axis=1)
  return _from_places(out, places, homes)


def _padded(q_btnh, k_btkh, v_btkh, state, kernel):
  return causal(q_btnh, k_btkh, v_btkh, state.lengths_b, kernel), (k_btkh, v_btkh)


def _take(x_btnh, places_bs):
  """x at the places of each row, 0 where a place is -1."""
  taken = jax.vmap(lambda x, places: x[jnp.maximum(places, 0)])(x_btnh, places_bs)
  return jnp.where(places_bs[:, :, None, None] >= 0, taken, 0)


# Both moves know their way back, so their gradients are gathers too: XLA would scatter, which on
# GPUs means atomic additions, in bfloat16.


@jax.custom_vjp
def _to_places(x_btnh, places_bs, copies_btg):
  """x at the places of each row; the gradient of a token is summed over its copies."""
  return _take(x_btnh, places_bs)


def _to_places_back(copies_btg, grad_bsnh):
  grads = (_take(grad_bsnh, copies_btg[:, :, g]) for g in range(copies_btg.shape[2]))
  total_btnh = sum(grad.astype(jnp.float32) for grad in grads)
  return total_btnh.astype(grad_bsnh.dtype), None, None


_to_places.defvjp(lambda x, lines, copies: (_take(x, lines), copies), _to_places_back)


@jax.custom_vjp
def _from_places(x_bsnh, places_bs, homes_bt):
  """x at the places homes_bt; places_bs says where each place of x came from."""
  return _take(x_bsnh, homes_bt)


def _from_places_back(places, grad_btnh):
  places_bs, homes_bt = places
  home_bs = jnp.take_along_axis(homes_bt, jnp.maximum(places_bs, 0), axis=1)
  at_home_bs = (places_bs >= 0) & (home_bs == jnp.arange(places_bs.shape[1]))
  return _take(grad_btnh, jnp.where(at_home_bs, places_bs, -1)), None, None


_from_places.defvjp(lambda x, lines, homes: (_take(x, homes), (lines, homes)), _from_places_back)


def prompt_cache(k_btkh, v_btkh):
  """(prompt_k_bkph, prompt_v_bkhp) of Cached, from the memory of a prompt that was read."""
  return k_btkh.transpose(0, 2, 1, 3), v_btkh.transpose(0, 2, 3, 1)


def _cached(q_bgnh, k_bgkh, v_bgkh, state, kernel):
  del kernel  # one token a row: there is nothing for them to do
  b, g, n, h = q_bgnh.shape
  k, r = k_bgkh.shape[2], state.k_bgkhr.shape[4]
  q = q_bgnh.reshape(b, g, k, n // k, h)
  write = lambda ring, new, axis: jax.lax.dynamic_update_slice_in_dim(
    ring, jnp.expand_dims(new, axis).astype(ring.dtype), state.column, axis=axis
  )
  keys, values = write(state.k_bgkhr, k_bgkh, 4), write(state.v_bgkrh, v_bgkh, 3)

  f32 = dict(preferred_element_type=jnp.float32)
  prompt = jnp.einsum("bgkqh,bkph->bgkqp", q, state.prompt_k_bkph, **f32)
  own = jnp.einsum("bgkqh,bgkhr->bgkqr", q, keys, **f32)
  p = prompt.shape[-1]
  in_prompt = jnp.arange(p) < state.lengths_b[:, None]
  age = (state.column - jnp.arange(r)) % r  # of each slot: 0 for the one just written
  in_own = age < state.ages_bg[:, :, None]
  prompt = jnp.where(in_prompt[:, None, None, None], prompt / math.sqrt(h), NEGATIVE)
  own = jnp.where(in_own[:, :, None, None], own / math.sqrt(h), NEGATIVE)
  probs = jax.nn.softmax(jnp.concatenate([prompt, own], axis=-1), axis=-1).astype(values.dtype)
  out = jnp.einsum("bgkqp,bkhp->bgkqh", probs[..., :p], state.prompt_v_bkhp)
  out += jnp.einsum("bgkqr,bgkrh->bgkqh", probs[..., p:], values)
  return out.reshape(b, g, n, h), (keys, values)
