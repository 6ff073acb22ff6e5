"""The device programs of the built-in sampler: prefill and decode, on slots of a known shape.

A slot holds one prompt, prefilled once, and its responses. For each SlotShape there are three
programs: `empty` allocates the slots, `prefill` reads a chunk of a few prompts and puts them into
slots with their last chunk, `decode` samples tokens for all slots. The random key of a token
depends on (seed, step, prompt, sample, position) and on nothing else, so slots, shapes and meshes
do not change what is sampled.
"""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srl_jax.data.batches import bucket
from srl_jax.policy import attention, cpu, kernels
from srl_jax.policy.model import ModelConfig, rotary_angles
from srl_jax.policy.sharding import ACT_AXES, act_spec, has_mesh, reshard
from srl_jax.rollout.insertion import insert_caches

LONGEST_CHUNK = 1024  # prompts of at most as many tokens are prefilled by one call
CHUNK = 512  # tokens that one call of `prefill` reads of longer prompts


class SlotShape(NamedTuple):
  """The lengths that the programs are compiled for.

  Fields:
    b: slots, all of which decode together.
    g: responses of a slot.
    p: most tokens of a prompt.
    r: most tokens of a response, the entries of its ring buffers.
    batch: prompts of one prefill.
    c: tokens of each prompt that one call of `prefill` reads; it divides p.
  """

  b: int
  g: int
  p: int
  r: int
  batch: int
  c: int


def slot_shape(
  width: int, n: int, longest: int, max_tokens: int, rows: int = 1, kernel: str = "xla"
) -> SlotShape:
  """The shape for groups of n responses.

  Args:
    width: responses that decode together, of all groups.
    longest: tokens of the longest prompt.
    max_tokens: most tokens of a response.
    rows: shards of the batch, sharding.shards("b").
    kernel: of kernels.KERNELS, which prefills prompts of one chunk.
  """
  # b and batch are multiples of `rows`, so that each device has equally many. A prefill fills a
  # quarter of the slots: a smaller one reads the weights more often, a larger one waits longer.
  b = max(1, width // n // rows) * rows
  p = kernels.padded_length(bucket(longest), kernel)
  c = p if p <= LONGEST_CHUNK else CHUNK
  p = -(-p // c) * c  # rounded up to a multiple
  return SlotShape(
    b=b, g=n, p=p, r=attention.ring_length(max_tokens), batch=max(1, b // 4 // rows) * rows, c=c
  )


class Slots(NamedTuple):
  """The state of decoding, for b slots of g responses.

  A response's tokens, keys and values are in ring buffers of r entries. All slots write to the same
  `column`, whenever they were filled, so a write is one slice.

  Fields:
    caches: prompt_k_bkph, prompt_v_bkph and the two ring buffers of each layer: those of
      attention.cached_of.
    lengths_b: tokens of the prompt.
    streams_b: uint32, of the prompt's random keys.
    offsets_b: the index, in the prompt's group, of the slot's first response.
    ages_bg: tokens sampled so far.
    done_bg: whether the response has ended; True in empty slots.
    newest_bg: the newest token, which the network has not read yet.
    tokens_bgr, logprobs_bgr: ring buffers of the sampled tokens.
    column: scalar, where the token that was read last is in the ring buffers.
  """

  caches: list[tuple]
  lengths_b: jax.Array
  streams_b: jax.Array
  offsets_b: jax.Array
  ages_bg: jax.Array
  done_bg: jax.Array
  newest_bg: jax.Array
  tokens_bgr: jax.Array
  logprobs_bgr: jax.Array
  column: jax.Array


class Buffers(NamedTuple):
  """Prompts that were read in part, where prefill takes several calls.

  Fields:
    caches: (prompt_k_bkph, prompt_v_bkph) of each layer; b is SlotShape.batch.
    last_bd: the hidden state of each prompt's last token, once it has been read.
  """

  caches: list[tuple]
  last_bd: jax.Array


class NewPrompts(NamedTuple):
  """The prompts that `prefill` puts into slots; numpy arrays, b is SlotShape.batch.

  Fields (int32 but for streams_b):
    lengths_b, streams_b, offsets_b: as in Slots.
    counts_b: responses that are wanted; the other g - counts_b of a slot are done from the start.
  """

  lengths_b: np.ndarray
  streams_b: np.ndarray
  offsets_b: np.ndarray
  counts_b: np.ndarray


class Draws(NamedTuple):
  """The settings of random draws: arguments of the programs, so that none is compiled for them.

  Fields:
    seed_step: uint32 pair.
    temperature: float32 scalar; 0 takes the most likely token.
    max_tokens: int32 scalar, most tokens of a response, at most r.
  """

  seed_step: np.ndarray
  temperature: np.float32
  max_tokens: np.int32


class HostSnapshot(NamedTuple):
  """The fields of Slots that the host reads after a decode call.

  They are copies, because the next decode call donates the slots, and replicated, so that reading
  them launches no device program, which would queue behind the decode calls already dispatched.
  """

  done_b: jax.Array
  ages_bg: jax.Array
  tokens_bgr: jax.Array
  logprobs_bgr: jax.Array
  column: jax.Array


@functools.partial(jax.jit, static_argnames=("shape", "config"))
def empty(shape: SlotShape, config: ModelConfig) -> tuple[Slots, Buffers | None]:
  """Slots without prompts, and buffers where a prompt may have several chunks."""
  sizes = config.sizes() | shape._asdict()

  def filled(letters, value=0, dtype=jnp.int32, **others):
    dims = tuple((sizes | others)[letter] for letter in letters)
    return reshard(jnp.full(dims, value, dtype), act_spec(letters))

  def caches(letters, **others):
    layers = range(config.num_hidden_layers)
    return [tuple(filled(x, dtype=config.dtype, **others) for x in letters) for _ in layers]

  fields = attention.FIELDS[attention.cached_of(config.attention, config.head_dim)]
  # Lengths and ages of 1, so that an empty slot has an entry to attend to and no softmax over none.
  slots = Slots(
    caches=caches((fields[0], fields[1], fields[3], fields[4])),
    lengths_b=filled("b", 1),
    streams_b=filled("b", dtype=jnp.uint32),
    offsets_b=filled("b"),
    ages_bg=filled("bg", 1),
    done_bg=filled("bg", True, bool),
    newest_bg=filled("bg"),
    tokens_bgr=filled("bgr"),
    logprobs_bgr=filled("bgr", dtype=jnp.float32),
    column=filled(""),
  )
  if shape.c == shape.p:
    return slots, None
  last_bd = filled("bd", dtype=config.dtype, b=shape.batch)
  return slots, Buffers(caches(("bkph", "bkph"), b=shape.batch), last_bd)


@functools.partial(jax.jit, donate_argnums=(2, 3), static_argnames="stop_ids")
def prefill(model, layers, slots, buffers, tokens_bc, start, prompts, sources_b, draws, stop_ids):
  """Reads the next chunk of some prompts: (slots, buffers).

  Args:
    model, layers: of decoding_weights.decoding_copy.
    slots, buffers: of `empty`, or of an earlier call; donated.
    tokens_bc: int32, the prompts' tokens start .. start + c - 1; b is SlotShape.batch.
    start: int32 scalar, a multiple of c.
    prompts: NewPrompts.
    sources_b: int32 for each slot, the prompt that it takes and samples the first tokens of, or -1;
      -1 in all slots while a prompt has chunks that were not read.
    draws: Draws.
    stop_ids: token ids that end a response.
  """
  tokens_bc = reshard(tokens_bc, act_spec("bt"))
  lengths_b = reshard(prompts.lengths_b, act_spec("b"))
  positions_bc = reshard(
    start + jnp.broadcast_to(jnp.arange(tokens_bc.shape[1]), tokens_bc.shape), act_spec("bt")
  )
  rotary = rotary_angles(positions_bc, model.config)
  x_bcd, caches = model.embed(tokens_bc), []
  for i, layer in enumerate(layers):
    # Whole prompts use the platform's kernel; chunks need the keys before them as well.
    if buffers is None:
      x_bcd, keys_values = layer(x_bcd, rotary, attention.Padded(lengths_b))
      caches.append(attention.prompt_cache(*keys_values))
    else:
      x_bcd, cache = layer(x_bcd, rotary, attention.Chunk(*buffers.caches[i], start))
      caches.append(cache)
  # Selects the last token's state by a one-hot sum; 0 if that token is in another chunk.
  is_last_bc = positions_bc == lengths_b[:, None] - 1
  last_bd = jnp.einsum("bc,bcd->bd", is_last_bc.astype(x_bcd.dtype), x_bcd)
  if buffers is not None:
    # A short prompt's last token is in an earlier chunk than the longest one's: keep its state.
    last_bd = jnp.where(is_last_bc.any(axis=1, keepdims=True), last_bd, buffers.last_bd)
    buffers = Buffers(caches, last_bd)
  prompts = prompts._replace(lengths_b=lengths_b)
  slots = slots._replace(caches=insert_caches(slots.caches, caches, sources_b))
  return _first_tokens(model, slots, prompts, last_bd, sources_b, draws, stop_ids), buffers


def _first_tokens(model, slots, prompts, last_bd, sources_b, draws, stop_ids):
  """Slots with the first token of each response to the new prompts."""
  # All g responses draw their first token from one distribution, each with another random key.
  b, g = prompts.lengths_b.shape[0], slots.done_bg.shape[1]
  logits_b1v = model.logits(model.final_norm(last_bd[:, None]))
  logits_bgv = jnp.broadcast_to(logits_b1v, (b, g, logits_b1v.shape[-1]))
  of_prompt = lambda x_b: reshard(x_b, act_spec("b"))
  streams_b, offsets_b = of_prompt(prompts.streams_b), of_prompt(prompts.offsets_b)
  ages_bg = reshard(jnp.zeros((b, g), jnp.int32), act_spec("bg"))
  tokens_bg, logprobs_bg = pick_tokens(
    logits_bgv, draws, streams_b, offsets_b, ages_bg, model.config.on_cpu
  )

  sources_b = reshard(sources_b, act_spec("b"))
  takes_b = sources_b >= 0

  def choose(new, old, letters):
    # The new prompts are few, so they are replicated and each slot takes its own.
    layout = act_spec(letters) if has_mesh() else None
    new = reshard(new, jax.P()).at[jnp.maximum(sources_b, 0)].get(out_sharding=layout)
    return jnp.where(jnp.expand_dims(takes_b, range(1, old.ndim)), new, old)

  done_bg = jnp.arange(g) >= of_prompt(prompts.counts_b)[:, None]
  slots = slots._replace(
    lengths_b=choose(prompts.lengths_b, slots.lengths_b, "b"),
    streams_b=choose(streams_b, slots.streams_b, "b"),
    offsets_b=choose(offsets_b, slots.offsets_b, "b"),
    ages_bg=jnp.where(takes_b[:, None], 1, slots.ages_bg),
    done_bg=choose(done_bg, slots.done_bg, "bg"),
  )
  tokens_bg = choose(tokens_bg, slots.newest_bg, "bg")
  logprobs_bg = choose(logprobs_bg, slots.logprobs_bgr[:, :, 0], "bg")
  return _record(slots, takes_b[:, None], tokens_bg, logprobs_bg, draws, stop_ids)


def _record(slots: Slots, writes_bg, tokens_bg, logprobs_bg, draws, stop_ids):
  """Slots after sampling tokens_bg for the responses where writes_bg is True."""
  column = (slots.column + 1) % slots.tokens_bgr.shape[-1]

  # One slice at the same column for all slots; those that do not write store their old value again.
  def write(ring_bgr, new_bg):
    old_bg = jax.lax.dynamic_index_in_dim(ring_bgr, column, axis=2, keepdims=False)
    new_bg = jnp.where(writes_bg, new_bg, old_bg)
    return jax.lax.dynamic_update_index_in_dim(ring_bgr, new_bg, column, axis=2)

  stops_bg = (tokens_bg[:, :, None] == jnp.array(stop_ids, jnp.int32)).any(axis=-1)
  ended_bg = stops_bg | (slots.ages_bg >= draws.max_tokens)
  return slots._replace(
    newest_bg=jnp.where(writes_bg, tokens_bg, slots.newest_bg),
    tokens_bgr=write(slots.tokens_bgr, tokens_bg),
    logprobs_bgr=write(slots.logprobs_bgr, logprobs_bg),
    done_bg=slots.done_bg | (writes_bg & ended_bg),
  )


@functools.partial(jax.jit, donate_argnums=2, static_argnames="stop_ids")
def decode(model, layers, slots: Slots, free_slots, draws: Draws, stop_ids):
  """Decodes until at least `free_slots` slots are done or empty: (slots, HostSnapshot)."""
  r = slots.tokens_bgr.shape[-1]
  cached = attention.cached_of(model.config.attention, model.config.head_dim)

  def step(slots):
    # Reads the newest token, which is number ages_bg of its response, into the caches, and samples
    # the next one. Shapes are static, so ended responses run too; active_bg drops their results.
    column = (slots.column + 1) % r
    positions_bg = slots.lengths_b[:, None] + slots.ages_bg - 1
    rotary = rotary_angles(positions_bg, model.config)
    # An ended response attends to one entry, so that its length costs nothing.
    ages_bg = jnp.where(slots.done_bg, 1, slots.ages_bg)
    lengths_b = jnp.where(slots.done_bg.all(axis=1), 1, slots.lengths_b)
    x_bgd, caches = model.embed(slots.newest_bg), []
    for layer, (prompt_k, prompt_v, k, v) in zip(layers, slots.caches):
      state = cached(prompt_k, prompt_v, lengths_b, k, v, column, ages_bg)
      x_bgd, own = layer(x_bgd, rotary, state)
      caches.append((prompt_k, prompt_v, *own))
    logits_bgv = model.logits(model.final_norm(x_bgd))
    tokens_bg, logprobs_bg = pick_tokens(
      logits_bgv, draws, slots.streams_b, slots.offsets_b, slots.ages_bg, model.config.on_cpu
    )
    active_bg = ~slots.done_bg
    ages_bg = slots.ages_bg + active_bg
    slots = slots._replace(caches=caches, column=column, ages_bg=ages_bg)
    return _record(slots, active_bg, tokens_bg, logprobs_bg, draws, stop_ids)

  # A slot is done when all of its responses are.
  slots = jax.lax.while_loop(lambda s: s.done_bg.all(axis=1).sum() < free_slots, step, slots)
  rings = slots.tokens_bgr, slots.logprobs_bgr
  snapshot = HostSnapshot(slots.done_bg.all(axis=1), slots.ages_bg, *rings, slots.column)
  return slots, jax.tree.map(lambda x: reshard(x, jax.P()), snapshot)


def stream_of(prompt_id: str) -> int:
  """The 32-bit hash of a prompt's id, from which its random keys are derived."""
  return zlib.crc32(prompt_id.encode())


def random_keys(seed_step, streams_b, offsets_b, positions_bg):
  """keys_bg: the key of each token, named by (seed, step, prompt, sample, position)."""
  # fold_in is a hash, so a key depends on its five numbers alone, not on batch or slot.
  key = jax.random.fold_in(jax.random.key(seed_step[0]), seed_step[1])

  def of_token(stream, sample, position):
    fold = jax.random.fold_in
    return fold(fold(fold(key, stream), sample), position)

  samples_bg = offsets_b[:, None] + jnp.arange(positions_bg.shape[1])
  of_slot = jax.vmap(of_token, in_axes=(None, 0, 0))
  return jax.vmap(of_slot)(streams_b, samples_bg, positions_bg)


def pick(logits_bgv, draws: Draws, streams_b, offsets_b, positions_bg, on_cpu: bool):
  """Samples one token for each response.

  Args:
    logits_bgv: float32; v must not be sharded.
    draws: Draws; max_tokens is not used.
    streams_b: uint32, see stream_of.
    offsets_b: int32, see Slots.
    positions_bg: int32, index of the token in its response.
    on_cpu: whether to draw with cpu.categorical (ModelConfig.on_cpu).

  Returns:
    (tokens_bg int32, logprobs_bg float32): log-probs as Rollout.sampler_logprobs states them.
  """
  greedy = draws.temperature == 0
  temperature = jnp.where(greedy, 1.0, draws.temperature)
  # log_softmax, written so that XLA fuses the division with the exponentials.
  scaled_bgv = (logits_bgv - logits_bgv.max(axis=-1, keepdims=True)) / temperature
  logprobs_bgv = scaled_bgv - jnp.log(jnp.exp(scaled_bgv).sum(axis=-1, keepdims=True))
  keys_bg = random_keys(draws.seed_step, streams_b, offsets_b, positions_bg)
  draw = _draw_on_cpu if on_cpu else _draw
  of_slot = jax.vmap(draw, in_axes=(0, 0, None))
  tokens_bg = jax.vmap(of_slot, in_axes=(0, 0, None))(keys_bg, logprobs_bgv, greedy)
  logprobs_bg = jnp.take_along_axis(logprobs_bgv, tokens_bg[:, :, None], axis=-1)[:, :, 0]
  return tokens_bg.astype(jnp.int32), logprobs_bg


def _draw(key, logprobs_v, greedy):
  """jax.random.categorical (the most likely after adding Gumbel noise); greedy: without noise."""
  noise_v = jax.random.gumbel(key, logprobs_v.shape, logprobs_v.dtype)
  return jnp.argmax(jnp.where(greedy, 0, noise_v) + logprobs_v)


def _draw_on_cpu(key, logprobs_v, greedy):
  """_draw with cpu.categorical; the branch saves CPUs an argmax over the vocabulary."""
  draw = lambda logprobs_v: cpu.categorical(key, logprobs_v)
  return jax.lax.cond(greedy, jnp.argmax, draw, logprobs_v)


def pick_tokens(logits_bgv, draws, streams_b, offsets_b, positions_bg, on_cpu):
  """Runs `pick` on each device for its slots, because random draws need the whole vocabulary."""
  run = functools.partial(pick, on_cpu=on_cpu)
  if has_mesh():
    by_slot, bg = jax.P(ACT_AXES["b"], None, None), act_spec("bg")
    logits_bgv = reshard(logits_bgv, by_slot)
    specs = (by_slot, jax.P(), act_spec("b"), act_spec("b"), bg)
    run = jax.shard_map(run, in_specs=specs, out_specs=(bg, bg))
  return run(logits_bgv, draws, streams_b, offsets_b, positions_bg)
