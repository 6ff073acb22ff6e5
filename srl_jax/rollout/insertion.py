"""Moves the caches of prefilled prompts into slots."""

import jax
import jax.numpy as jnp

from srl_jax.policy.sharding import ACT_AXES, act_spec, has_mesh


def insert_caches(caches, new, sources_b):
  """The slots' caches with those of the new prompts, one prompt after the other.

  A mesh moves one prompt at a time, because all prompts all-gathered together can need more memory
  than the slots.

  Args:
    caches, new: of slots.Slots and of slots.Buffers.
    sources_b: see slots.prefill; the prompts that are taken are the first ones of `new`.
  """
  prompts_of = lambda caches: [(k, v) for k, v, *_ in caches]
  run = _insert_shard
  if has_mesh():
    specs = [(act_spec("bkph"), act_spec("bkph"))] * len(new)
    run = jax.shard_map(run, in_specs=(specs, specs, jax.P()), out_specs=specs)
  inserted = run(prompts_of(caches), new, sources_b)
  # The ring buffers keep their old entries, which are older than the age 1 of the new responses.
  return [(*prompt, *rings) for prompt, (_, _, *rings) in zip(inserted, caches)]


def _insert_shard(old, new, sources_b):
  """insert_caches on one device, which has some of the slots and some of the new prompts."""
  shard = jax.lax.axis_index(ACT_AXES["b"]) if has_mesh() else 0

  def insert(i, old):
    slot = jnp.argmax(sources_b == i)  # of prompt i; both are counted over all shards

    def one(old, new):
      # // is the number of the shard, % the index in the shard.
      row = jax.lax.dynamic_slice_in_dim(new, i % len(new), 1)
      if has_mesh():
        # The sum over shards: all but the one that has the prompt add zeros.
        row = jax.lax.psum(jnp.where(i // len(new) == shard, row, 0), ACT_AXES["b"])
      before = jax.lax.dynamic_slice_in_dim(old, slot % len(old), 1)
      row = jnp.where(slot // len(old) == shard, row, before)
      return jax.lax.dynamic_update_slice_in_dim(old, row, slot % len(old), 0)

    return jax.tree.map(one, old, new)

  return jax.lax.fori_loop(0, (sources_b >= 0).sum(), insert, old)
