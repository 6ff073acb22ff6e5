"""Sampling tokens from logits, with a random key for each token.

A key depends on the names of its token only (seed, step, prompt, sample, position), so slots,
batches and meshes do not change what is sampled.
"""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from srl_jax.policy import cpu
from srl_jax.policy.sharding import ACT_AXES, act_spec, has_mesh, reshard


class Decoding(NamedTuple):
  """What a compiled program depends on of SamplingParams, tokenizer and platform.

  Fields: temperature; stop_ids; on_cpu, whether to draw with cpu.categorical (ModelConfig.on_cpu).
  """

  temperature: float
  stop_ids: tuple[int, ...]
  on_cpu: bool = False


def stream_of(prompt_id: str) -> int:
  """The 32-bit hash of a prompt's id, from which its random keys are derived."""
  return zlib.crc32(prompt_id.encode())


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


def pick(logits_bgv, seed_step, streams_b, positions_bg, how: Decoding):
  """Samples one token for each response.

  Args:
    logits_bgv: float32; v must not be sharded.
    seed_step: uint32 pair.
    streams_b: uint32, see stream_of.
    positions_bg: int32, index of the token in its response.
    how: the temperature; 0 takes the most likely token.

  Returns:
    (tokens_bg int32, logprobs_bg float32): log-probs as Rollout.sampler_logprobs states them.
  """
  logprobs_bgv = jax.nn.log_softmax(logits_bgv / (how.temperature or 1.0), axis=-1)
  if how.temperature == 0:
    tokens_bg = jnp.argmax(logprobs_bgv, axis=-1)
  else:
    keys_bg = random_keys(seed_step, streams_b, positions_bg)
    categorical = cpu.categorical if how.on_cpu else jax.random.categorical
    tokens_bg = jax.vmap(jax.vmap(categorical))(keys_bg, logprobs_bgv)
  logprobs_bg = jnp.take_along_axis(logprobs_bgv, tokens_bg[:, :, None], axis=-1)[:, :, 0]
  return tokens_bg.astype(jnp.int32), logprobs_bg


def pick_tokens(logits_bgv, seed_step, streams_b, positions_bg, how: Decoding):
  """As `pick`, each device for its own slots."""
  run = functools.partial(pick, how=how)
  if has_mesh():
    by_slot, bg = jax.P(ACT_AXES["b"], None, None), act_spec("bg")
    logits_bgv = reshard(logits_bgv, by_slot)
    specs = (by_slot, jax.P(), act_spec("b"), bg)
    run = jax.shard_map(run, in_specs=specs, out_specs=(bg, bg))
  return run(logits_bgv, seed_step, streams_b, positions_bg)
