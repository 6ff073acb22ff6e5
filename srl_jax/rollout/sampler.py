"""The built-in rollout engine: continuous batching with a KV cache on the policy's own mesh.

A fixed number of slots decode together. A slot holds one prompt, prefilled once, and its n
responses. When all of them have ended, the next prompt is prefilled into the slot while the others
continue, so a batch does not wait for its longest response. The random key of a token depends on
(seed, step, prompt id, sample index, position) and on nothing else, so neither the slot nor the
other slots change what is sampled.
"""

import concurrent.futures
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srl_jax.data.batches import bucket
from srl_jax.data.tokenizer import decode
from srl_jax.policy import attention, kernels
from srl_jax.policy.model import WEIGHT_LETTERS, Qwen2, rotary_angles
from srl_jax.policy.sharding import (
  act_spec,
  all_gather_weight,
  has_mesh,
  keep_mesh,
  on_host,
  reshard,
  shards,
)
from srl_jax.rollout.engine import Prompt, Rollout, SamplingParams
from srl_jax.rollout.picking import Decoding, pick_tokens, stream_of


class Slots(NamedTuple):
  """The state of decoding, for b slots of g responses.

  A response's tokens, keys and values are in ring buffers of r entries, r being max_tokens. All
  slots write to the same `column`, whenever they were filled, so a write is one slice.

  Fields:
    caches: (prompt_k_bkph, prompt_v_bkhp, k_bgkhr, v_bgkrh) of each layer, see attention.Cached.
    lengths_b: tokens of the prompt.
    streams_b: uint32, of the prompt's random keys.
    ages_bg: tokens sampled so far.
    done_bg: whether the response has ended; True in empty slots.
    newest_bg: the newest token, which the network has not read yet.
    tokens_bgr, logprobs_bgr: ring buffers of the sampled tokens.
    column: scalar, where the token that was read last is in the ring buffers.
  """

  caches: list[tuple]
  lengths_b: jax.Array
  streams_b: jax.Array
  ages_bg: jax.Array
  done_bg: jax.Array
  newest_bg: jax.Array
  tokens_bgr: jax.Array
  logprobs_bgr: jax.Array
  column: jax.Array


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


def _is_stop(tokens_bg, stop_ids):
  return (tokens_bg[:, :, None] == jnp.array(stop_ids, jnp.int32)).any(axis=-1)


@jax.jit
def _decoding_copy(model: Qwen2):
  """(model without layers, list of layers) in the compute type.

  The copy is all-gathered along fsdp, once per version of the weights instead of once per token.
  Each layer's weights are separate arrays, so that decoding slices no stacked array.
  """
  dtype = model.config.dtype
  layers, outside = model.layers, [name for name in WEIGHT_LETTERS if hasattr(model, name)]
  del model.layers  # jit passes a copy of the module, so the caller's model keeps them
  for name in outside:
    if name != "layers":
      # `weight[...] = ` would cast back to the master's type.
      weight = getattr(model, name)
      weight.set_value(all_gather_weight(weight[...], WEIGHT_LETTERS[name], dtype))
  for name, letters in WEIGHT_LETTERS["layers"].items():
    weight = getattr(layers, name)
    weight.set_value(all_gather_weight(weight[...], "l" + letters, dtype))
  count = model.config.num_hidden_layers
  return model, [jax.tree.map(lambda w: w[i], layers) for i in range(count)]  # noqa: B023


@functools.partial(jax.jit, static_argnames=("n", "how"))
def _prefill(model, layers, tokens_bp, lengths_b, streams_b, seed_step, n, how):
  """Prefills prompts and samples the first token of the n responses of each.

  Returns (tokens_bg, logprobs_bg, [(prompt_k_bkph, prompt_v_bkhp) of each layer]).
  """
  b, p = tokens_bp.shape
  tokens_bp, lengths_b = reshard(tokens_bp, act_spec("bp")), reshard(lengths_b, act_spec("b"))
  streams_b = reshard(streams_b, act_spec("b"))
  positions_bp = reshard(jnp.broadcast_to(jnp.arange(p), (b, p)), act_spec("bp"))
  state = attention.Padded(lengths_b)
  rotary = rotary_angles(positions_bp, model.config)
  x_bpd, memory = model.embed(tokens_bp), []
  for layer in layers:
    x_bpd, keys_values = layer(x_bpd, rotary, state)
    memory.append(attention.prompt_cache(*keys_values))
  last = (positions_bp == lengths_b[:, None] - 1).astype(x_bpd.dtype)
  last_b1d = jnp.einsum("bp,bpd->bd", last, x_bpd)[:, None]
  logits_b1v = model.logits(model.final_norm(last_b1d))
  logits_bgv = jnp.broadcast_to(logits_b1v, (b, n, logits_b1v.shape[-1]))
  positions_bg = reshard(jnp.zeros((b, n), jnp.int32), act_spec("bg"))
  tokens_bg, logprobs_bg = pick_tokens(logits_bgv, seed_step, streams_b, positions_bg, how)
  return tokens_bg, logprobs_bg, memory


def _prefill_batch(model, layers, prompts, batch, seed_step, n, p, how):
  """Prefills at most `batch` prompts, padded to `batch` rows of p tokens.

  Returns the arguments of _insert: (lengths_b, streams_b, tokens_bg, logprobs_bg, memory).
  """
  tokens_bp = np.zeros((batch, p), np.int32)
  lengths_b = np.ones(batch, np.int32)
  streams_b = np.zeros(batch, np.uint32)
  for row, prompt in enumerate(prompts):
    tokens_bp[row, : len(prompt.token_ids)] = prompt.token_ids
    lengths_b[row], streams_b[row] = len(prompt.token_ids), stream_of(prompt.id)
  first = _prefill(model, layers, tokens_bp, lengths_b, streams_b, seed_step, n=n, how=how)
  return lengths_b, streams_b, *first


@functools.partial(jax.jit, static_argnums=range(6))
def _empty_slots(layers, b, g, p, r, config) -> Slots:
  """Slots without prompts, for `layers` layers."""
  k, h = config.num_key_value_heads, config.head_dim

  def filled(letters, value=0, dtype=jnp.int32):
    shape = tuple(dict(b=b, g=g, p=p, r=r, k=k, h=h)[letter] for letter in letters)
    return reshard(jnp.full(shape, value, dtype), act_spec(letters))

  cache = lambda letters: filled(letters, dtype=config.dtype)
  letters = ("bkph", "bkhp", "bgkhr", "bgkrh")
  return Slots(
    caches=[tuple(map(cache, letters)) for _ in range(layers)],
    lengths_b=filled("b", 1),
    streams_b=filled("b", dtype=jnp.uint32),
    ages_bg=filled("bg", 1),
    done_bg=filled("bg", True, bool),
    newest_bg=filled("bg"),
    tokens_bgr=filled("bgr"),
    logprobs_bgr=filled("bgr", dtype=jnp.float32),
    column=jnp.int32(0),
  )


@functools.partial(jax.jit, donate_argnums=0, static_argnames="how")
def _insert(slots: Slots, sources_b, lengths_b, streams_b, tokens_bg, logprobs_bg, memory, how):
  """Slots with new prompts: slot i takes prefilled prompt sources_b[i]; -1 leaves it as it is."""
  sources_b = reshard(sources_b, act_spec("b"))
  takes_b = sources_b >= 0

  def choose(new, old, letters):
    # The new prompts are few, so they are replicated and each slot takes its own.
    layout = act_spec(letters) if has_mesh() else None
    new = reshard(new, jax.P()).at[jnp.maximum(sources_b, 0)].get(out_sharding=layout)
    return jnp.where(takes_b.reshape(-1, *[1] * (old.ndim - 1)), new, old)

  ages_bg = jnp.where(takes_b[:, None], 1, slots.ages_bg)
  done_bg = jnp.where(takes_b[:, None], False, slots.done_bg)
  slots = slots._replace(
    caches=[
      (choose(k, old[0], "bkph"), choose(v, old[1], "bkhp"), *old[2:])
      for (k, v), old in zip(memory, slots.caches)
    ],
    lengths_b=choose(lengths_b, slots.lengths_b, "b"),
    streams_b=choose(streams_b, slots.streams_b, "b"),
    ages_bg=ages_bg,
    done_bg=done_bg,
  )
  tokens_bg = choose(tokens_bg, slots.newest_bg, "bg")
  logprobs_bg = choose(logprobs_bg, slots.logprobs_bgr[:, :, 0], "bg")
  return _record(slots, takes_b[:, None], tokens_bg, logprobs_bg, how)


def _record(slots: Slots, writes_bg, tokens_bg, logprobs_bg, how):
  """Slots after sampling tokens_bg for the responses where writes_bg is True."""
  r = slots.tokens_bgr.shape[-1]
  column = (slots.column + 1) % r

  def write(ring_bgr, new_bg):
    old_bg = jax.lax.dynamic_index_in_dim(ring_bgr, column, axis=2, keepdims=False)
    new_bg = jnp.where(writes_bg, new_bg, old_bg)
    return jax.lax.dynamic_update_index_in_dim(ring_bgr, new_bg, column, axis=2)

  ended = _is_stop(tokens_bg, how.stop_ids) | (slots.ages_bg >= r)
  return slots._replace(
    newest_bg=jnp.where(writes_bg, tokens_bg, slots.newest_bg),
    tokens_bgr=write(slots.tokens_bgr, tokens_bg),
    logprobs_bgr=write(slots.logprobs_bgr, logprobs_bg),
    done_bg=slots.done_bg | (writes_bg & ended),
  )


@functools.partial(jax.jit, donate_argnums=2, static_argnames="how")
def _decode(model, layers, slots: Slots, seed_step, free_slots, how):
  """Decodes until at least `free_slots` slots are done or empty: (slots, HostSnapshot)."""
  r = slots.tokens_bgr.shape[-1]

  def step(slots):
    column = (slots.column + 1) % r
    positions_bg = slots.lengths_b[:, None] + slots.ages_bg - 1
    rotary = rotary_angles(positions_bg, model.config)
    x_bgd, caches = model.embed(slots.newest_bg), []
    for layer, (prompt_k, prompt_v, k, v) in zip(layers, slots.caches):
      state = attention.Cached(prompt_k, prompt_v, slots.lengths_b, k, v, column, slots.ages_bg)
      x_bgd, own = layer(x_bgd, rotary, state)
      caches.append((prompt_k, prompt_v, *own))
    logits_bgv = model.logits(model.final_norm(x_bgd))
    tokens_bg, logprobs_bg = pick_tokens(logits_bgv, seed_step, slots.streams_b, slots.ages_bg, how)
    active_bg = ~slots.done_bg
    ages_bg = slots.ages_bg + active_bg
    slots = slots._replace(caches=caches, column=column, ages_bg=ages_bg)
    return _record(slots, active_bg, tokens_bg, logprobs_bg, how)

  slots = jax.lax.while_loop(lambda s: s.done_bg.all(axis=1).sum() < free_slots, step, slots)
  rings = slots.tokens_bgr, slots.logprobs_bgr
  snapshot = HostSnapshot(slots.done_bg.all(axis=1), slots.ages_bg, *rings, slots.column)
  return slots, jax.tree.map(lambda x: reshard(x, jax.P()), snapshot)


def _free_slot_targets(free: int, count: int, batch: int, waiting: bool) -> Iterator[int]:
  """Yields for each decode call the number of free slots, of `count`, at which it returns.

  While prompts wait there is one call, which returns when as many slots are free as one prefill
  fills. Afterwards each call waits for three quarters of the slots that are left, so that the
  caller can work on finished groups while the others decode.

  Args: free, the free slots before the first call; batch, the prompts of one prefill.
  """
  if waiting:
    yield min(count, free + batch)
    return
  while free < count:
    free = count - (count - free) // 4
    yield free


class Sampler:
  """The built-in engine (rollout.engine.Engine).

  Decode calls are dispatched from a thread, at most two ahead, so that the device decodes while
  the caller works on finished groups. The thread is there because on GPUs dispatching a while_loop
  blocks the host until the loop ends. With several processes the caller must not launch device
  programs between two groups, because all processes must launch theirs in the same order.

  Args:
    tokenizer: decodes the responses' text.
    stop_ids: token ids that end a response.
    width: responses that decode together; a group of n takes n of them.
    check: called before each decode call, by all processes; what it raises ends `sample`.
  """

  def __init__(
    self,
    tokenizer,
    stop_ids: Sequence[int],
    width: int,
    check: Callable[[], None] = lambda: None,
  ):
    self.tokenizer = tokenizer
    self.stop_ids = tuple(stop_ids)
    self.width = width
    self._check = check
    self._dispatcher = concurrent.futures.ThreadPoolExecutor(1, "decode")
    self.version = None

  def load_weights(self, model: Qwen2, version: int) -> None:
    self.model, self.layers = _decoding_copy(model)
    self.version = version

  def stats(self) -> dict[str, float]:
    return {}

  def close(self) -> None:
    self._dispatcher.shutdown()
    self.model = self.layers = self.version = None

  def sample(
    self, prompts: Sequence[Prompt], n: int, params: SamplingParams
  ) -> Iterator[list[Rollout]]:
    if self.version is None:
      raise RuntimeError("Sampler.sample: there are no weights; call load_weights first")
    if not prompts:
      return
    # An open iterator keeps the weights with which it began.
    model, layers, version = self.model, self.layers, self.version
    rows = shards("b")
    count = max(1, self.width // n // rows) * rows  # slots
    batch = max(1, count // 4 // rows) * rows  # prompts of one prefill
    p = bucket(max(len(prompt.token_ids) for prompt in prompts))
    p = kernels.padded_length(p, model.config.attention)
    r = params.max_tokens
    how = Decoding(params.temperature, self.stop_ids, model.config.on_cpu)
    seed_step = np.array([params.seed, params.step], np.uint32)
    slots = None
    assigned: list[Prompt | None] = [None] * count  # the prompt in each slot
    first_columns = np.zeros(count, int)  # the ring buffer's column of each slot's first token
    column = 0  # slots.column
    waiting, snapshot, finished = list(prompts)[::-1], None, []

    @keep_mesh
    def decode(free_slots) -> HostSnapshot:
      nonlocal slots
      slots, newer = _decode(model, layers, slots, seed_step, free_slots, how)
      return newer

    while waiting or any(assigned):
      free = [i for i, prompt in enumerate(assigned) if prompt is None]
      while waiting and free:
        taken = [waiting.pop() for _ in range(min(batch, len(waiting), len(free)))]
        chosen, free = free[: len(taken)], free[len(taken) :]
        first_columns[chosen] = (column + 1) % r
        for i, prompt in zip(chosen, taken):
          assigned[i] = prompt
        prefilled = _prefill_batch(model, layers, taken, batch, seed_step, n, p, how)
        if slots is None:  # allocated while the device prefills the first prompts
          slots = _empty_slots(len(layers), count, n, p, r, model.config)
        sources = np.full(count, -1, np.int32)
        sources[chosen] = np.arange(len(taken))
        slots = _insert(slots, sources, *prefilled, how=how)
      targets = _free_slot_targets(len(free), count, batch, bool(waiting))
      with contextlib.closing(self._decode_ahead(decode, targets)) as snapshots:
        for newer in snapshots:
          # The caller works on these groups while the device decodes.
          yield from self._groups(snapshot, finished, version)
          snapshot = newer.result()
          column, done_b = int(on_host(snapshot.column)), on_host(snapshot.done_b)
          ended = [i for i in np.flatnonzero(done_b) if assigned[i]]
          finished = [(i, first_columns[i], assigned[i]) for i in ended]
          for i in ended:
            assigned[i] = None
    yield from self._groups(snapshot, finished, version)

  def _decode_ahead(self, decode, targets) -> Iterator[concurrent.futures.Future]:
    """Yields the future HostSnapshot of `decode(target)` for each target.

    Each is yielded when the next call is dispatched too, so two are in flight.
    """
    started = []
    try:
      for target in targets:
        self._check()
        started.append(self._dispatcher.submit(decode, target))
        if len(started) > 1:
          yield started[-2]
      yield started[-1]
    finally:
      # A caller that leaves early may launch other programs, on every process after these.
      concurrent.futures.wait(started)

  def _groups(self, snapshot: HostSnapshot | None, finished, version) -> Iterator[list[Rollout]]:
    """This process's share of the finished groups [(slot, column of its first token, prompt)]."""
    if not finished:
      return
    ages_bg, tokens_bgr, logprobs_bgr = map(
      on_host, (snapshot.ages_bg, snapshot.tokens_bgr, snapshot.logprobs_bgr)
    )
    r = tokens_bgr.shape[-1]
    for slot, first_column, prompt in finished:
      if slot % jax.process_count() == jax.process_index():
        order_r = (first_column + np.arange(r)) % r  # oldest token first
        tokens_gr, logprobs_gr = tokens_bgr[slot][:, order_r], logprobs_bgr[slot][:, order_r]
        yield [
          self._rollout(prompt, version, *response)
          for response in zip(ages_bg[slot], tokens_gr, logprobs_gr)
        ]

  def _rollout(self, prompt, version, age, tokens_r, logprobs_r) -> Rollout:
    token_ids = tuple(tokens_r[:age].tolist())
    return Rollout(
      prompt_id=prompt.id,
      token_ids=token_ids,
      sampler_logprobs=tuple(logprobs_r[:age].tolist()),
      finish_reason="stop" if token_ids[-1] in self.stop_ids else "length",
      weight_version=version,
      text=decode(self.tokenizer, token_ids),
    )
