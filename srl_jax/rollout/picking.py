"""Choosing tokens from logits, with random numbers that are named and not drawn in turn."""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from srl_jax.policy.sharding import ACT_AXES, act_spec, has_mesh, reshard

BLOCK = 128  # entries of the vocabulary; see draw


class Decoding(NamedTuple):
  """The part of SamplingParams that a compiled program depends on."""

  temperature: float
  top_p: float
  top_k: int
  stop_ids: tuple[int, ...]


def stream_of(prompt_id: str) -> int:
  """The 32-bit name of a prompt's random stream."""
  return zlib.crc32(prompt_id.encode())


def truncate(logprobs_bgv, top_p: float, top_k: int):
  """-inf for tokens outside the top_k most likely, or outside the smallest set of mass >= top_p."""
  if top_p >= 1 and not 0 < top_k < logprobs_bgv.shape[-1]:
    return logprobs_bgv
  ranked = jnp.sort(logprobs_bgv, axis=-1, descending=True)
  keep = jnp.cumsum(jnp.exp(ranked), axis=-1) - jnp.exp(ranked) < top_p  # mass before the token
  if top_k > 0:
    keep &= jnp.arange(ranked.shape[-1]) < top_k
  least = jnp.min(jnp.where(keep, ranked, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logprobs_bgv >= least, logprobs_bgv, -jnp.inf)


def random_keys(seed_step, streams_b, positions_bg):
  """keys_bg: the key of each token, named by (seed, step, prompt, sample, position)."""
  key = jax.random.fold_in(jax.random.key(seed_step[0]), seed_step[1])
  fold = jax.vmap(jax.random.fold_in)
  samples_g = jnp.arange(positions_bg.shape[1])
  of_prompt = lambda stream, positions_g: fold(
    jax.vmap(lambda g: jax.random.fold_in(jax.random.fold_in(key, stream), g))(samples_g),
    positions_g,
  )
  return jax.vmap(of_prompt)(streams_b, positions_bg)


def _first_above(weights_bgx, share_bg):
  """index_bg: where the running sum of the weights first exceeds that share of their total."""
  sums_bgx = jnp.cumsum(weights_bgx, axis=-1)
  above = (sums_bgx > share_bg[:, :, None] * sums_bgx[:, :, -1:]) & (weights_bgx > 0)
  # Rounding can leave nothing above a share just below 1.
  return jnp.where(above.any(axis=-1), above.argmax(axis=-1), weights_bgx.argmax(axis=-1))


def draw(probs_bgv, keys_bg):
  """tokens_bg, drawn with these probabilities (of any positive total).

  By inverting the distribution function, first over blocks of the vocabulary and then inside one:
  two uniform numbers a token, where Gumbel noise would take one for each entry of the vocabulary.
  """
  v = probs_bgv.shape[-1]
  blocks = jnp.pad(probs_bgv, ((0, 0), (0, 0), (0, -v % BLOCK)))
  blocks = blocks.reshape(*probs_bgv.shape[:2], -1, BLOCK)
  shares = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (2,))))(keys_bg)
  block_bg = _first_above(blocks.sum(axis=-1), shares[:, :, 0])
  inside = jnp.take_along_axis(blocks, block_bg[:, :, None, None], axis=2)[:, :, 0]
  return block_bg * BLOCK + _first_above(inside, shares[:, :, 1])


def pick(logits_bgv, seed_step, streams_b, positions_bg, how: Decoding):
  """Samples one token for each response.

  Args:
    logits_bgv: float32; v must be whole.
    seed_step: uint32 pair.
    streams_b: uint32, see stream_of.
    positions_bg: int32, index of the token in its response.
    how: temperature, top-p and top-k.

  Returns:
    (tokens_bg int32, logprobs_bg float32): log-probs as Rollout.sampler_logprobs states them.
  """
  logprobs = jax.nn.log_softmax(logits_bgv / (how.temperature or 1.0), axis=-1)
  if how.temperature == 0:
    tokens_bg = jnp.argmax(logprobs, axis=-1)
  else:
    probs = jnp.exp(truncate(logprobs, how.top_p, how.top_k))
    tokens_bg = draw(probs, random_keys(seed_step, streams_b, positions_bg))
  logprobs_bg = jnp.take_along_axis(logprobs, tokens_bg[:, :, None], axis=-1)[:, :, 0]
  return tokens_bg.astype(jnp.int32), logprobs_bg


def pick_tokens(logits_bgv, seed_step, streams_b, positions_bg, how):
  """`pick`, each device for its own slots."""
  run = functools.partial(pick, how=how)
  if has_mesh():
    whole, bg = jax.P(ACT_AXES["b"], None, None), act_spec("bg")
    logits_bgv = reshard(logits_bgv, whole)
    specs = (whole, jax.P(), act_spec("b"), bg)
    run = jax.shard_map(run, in_specs=specs, out_specs=(bg, bg))
  return run(logits_bgv, seed_step, streams_b, positions_bg)
