"""The built-in rollout engine: batched sampling with a KV cache on the policy's own mesh.

A fixed number of slots decode side by side. A slot holds one prompt, read once, and its n
responses; when all of them have ended it takes the next prompt while the other slots go on, so a
batch does not wait for its longest response. A token's random number is named by (seed, step,
prompt id, sample index, position) and by nothing else: neither the slot nor its neighbours change
what is sampled.
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
from srl_jax.policy import attention, kernels
from srl_jax.policy.model import LAYOUT, Qwen2, rotary_angles
from srl_jax.policy.sharding import (
  act_spec,
  gather,
  has_mesh,
  keep_mesh,
  lookup,
  on_host,
  reshard,
  shards,
)
from srl_jax.rollout.engine import Prompt, Rollout, SamplingParams
from srl_jax.rollout.picking import Decoding, pick_tokens, stream_of


class Slots(NamedTuple):
  """What decoding carries from token to token, for b slots of g responses.

  A response's tokens and keys lie in a ring of r places, r being the most tokens of a response. All
  slots write at the same `column`, from wherever they began, so a write is one slice.
  """

  caches: list[tuple]  # (prompt_k_bkph, prompt_v_bkhp, k_bgkhr, v_bgkrh) of each layer
  lengths_b: jax.Array  # tokens of the prompt
  streams_b: jax.Array  # uint32, the prompt's random stream
  ages_bg: jax.Array  # tokens sampled so far
  done_bg: jax.Array  # ended, or nobody sits here
  newest_bg: jax.Array  # the newest token, which the network has not read yet
  tokens_bgr: jax.Array
  logprobs_bgr: jax.Array
  column: jax.Array  # where the token read last stands


class View(NamedTuple):
  """What the host reads of slots: copies, for the next program writes where the slots lie.

  Whole on every device, so that no process needs another program, which would wait in line behind
  the next decodings, to read them.
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

  The copy is whole along fsdp, so weights are gathered once a version and not once a token, and
  every layer's weights stand alone, so that decoding reads them where they lie.
  """
  dtype = model.config.dtype
  layers, outside = model.layers, [name for name in LAYOUT if hasattr(model, name)]
  del model.layers  # of jit's own copy of the module
  for name in outside:
    if name != "layers":
      # Not `weight[...] = `, which keeps the master's type.
      weight = getattr(model, name)
      weight.set_value(gather(weight[...], LAYOUT[name], dtype))
  for name, letters in LAYOUT["layers"].items():
    weight = getattr(layers, name)
    weight.set_value(gather(weight[...], "l" + letters, dtype))
  count = model.config.num_hidden_layers
  return model, [jax.tree.map(lambda w: w[i], layers) for i in range(count)]  # noqa: B023


@functools.partial(jax.jit, static_argnames=("n", "how"))
def _prefill(model, layers, tokens_bp, lengths_b, streams_b, seed_step, n, how):
  """Reads prompts and samples the first token of the n responses of each.

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


def _read(model, layers, prompts, batch, seed_step, n, p, how):
  """What _insert wants of prompts that take seats: lengths, streams, first tokens, memory."""
  tokens_bp = np.zeros((batch, p), np.int32)
  lengths_b = np.ones(batch, np.int32)
  streams_b = np.zeros(batch, np.uint32)
  for row, prompt in enumerate(prompts):
    tokens_bp[row, : len(prompt.token_ids)] = prompt.token_ids
    lengths_b[row], streams_b[row] = len(prompt.token_ids), stream_of(prompt.id)
  first = _prefill(model, layers, tokens_bp, lengths_b, streams_b, seed_step, n=n, how=how)
  return lengths_b, streams_b, *first


@functools.partial(jax.jit, static_argnums=range(6))
def _empty(layers, b, g, p, r, config) -> Slots:
  """Slots in which nobody sits, for `layers` layers."""
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
  """Slots with new prompts: slot i takes prefilled prompt sources_b[i], or keeps its own (-1)."""
  sources_b = reshard(sources_b, act_spec("b"))
  takes_b = sources_b >= 0

  def choose(new, old, letters):
    # The new prompts are few: they come whole to every device and each slot picks its own.
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
  """Slots whose newest tokens are tokens_bg, for the responses of writes_bg."""
  r = slots.tokens_bgr.shape[-1]
  place = (slots.column + 1) % r

  def write(ring_bgr, new_bg):
    old_bg = jax.lax.dynamic_index_in_dim(ring_bgr, place, axis=2, keepdims=False)
    new_bg = jnp.where(writes_bg, new_bg, old_bg)
    return jax.lax.dynamic_update_index_in_dim(ring_bgr, new_bg, place, axis=2)

  ended = _is_stop(tokens_bg, how.stop_ids) | (slots.ages_bg >= r)
  return slots._replace(
    newest_bg=jnp.where(writes_bg, tokens_bg, slots.newest_bg),
    tokens_bgr=write(slots.tokens_bgr, tokens_bg),
    logprobs_bgr=write(slots.logprobs_bgr, logprobs_bg),
    done_bg=slots.done_bg | (writes_bg & ended),
  )


@functools.partial(jax.jit, donate_argnums=2, static_argnames="how")
def _decode(model, layers, slots: Slots, seed_step, free_slots, how):
  """Decodes until at least `free_slots` slots have ended (empty ones count): (slots, View)."""
  p, r = slots.caches[0][0].shape[2], slots.tokens_bgr.shape[-1]
  # A table: computed in a step, the angles are computed for every head of every layer on CPUs.
  table = rotary_angles(jnp.arange(p + r)[None], model.config)

  def step(slots):
    column = (slots.column + 1) % r
    positions_bg = slots.lengths_b[:, None] + slots.ages_bg - 1
    rotary = [lookup(angle[0], positions_bg, angle.dtype) for angle in table]
    x_bgd, caches = model.embed(slots.newest_bg), []
    for layer, (prompt_k, prompt_v, k, v) in zip(layers, slots.caches):
      state = attention.Cached(prompt_k, prompt_v, slots.lengths_b, k, v, column, slots.ages_bg)
      x_bgd, own = layer(x_bgd, rotary, state)
      caches.append((prompt_k, prompt_v, *own))
    logits_bgv = model.logits(model.final_norm(x_bgd))
    tokens_bg, logprobs_bg = pick_tokens(logits_bgv, seed_step, slots.streams_b, slots.ages_bg, how)
    goes_on_bg = ~slots.done_bg
    ages_bg = slots.ages_bg + goes_on_bg
    slots = slots._replace(caches=caches, column=column, ages_bg=ages_bg)
    return _record(slots, goes_on_bg, tokens_bg, logprobs_bg, how)

  slots = jax.lax.while_loop(lambda s: s.done_bg.all(axis=1).sum() < free_slots, step, slots)
  rings = slots.tokens_bgr, slots.logprobs_bgr
  view = View(slots.done_bg.all(axis=1), slots.ages_bg, *rings, slots.column)
  return slots, jax.tree.map(lambda x: reshard(x, jax.P()), view)


def _goals(free: int, count: int, batch: int, waiting: bool) -> Iterator[int]:
  """How many of `count` slots are to be free after each decoding, of which `free` are now.

  Where prompts wait, as many more as are read at once. Else three quarters of the rest each time:
  the caller works on the groups that came while the others decode, and at the end on few.
  """
  if waiting:
    yield min(count, free + batch)
    return
  while free < count:
    free = count - (count - free) // 4
    yield free


class Sampler:
  """The built-in engine (rollout.engine.Engine).

  A thread starts the decodings, two ahead at most, so that the device goes on while the caller
  works on the groups that came: on NVIDIA a program with a loop comes back when it has ended. With
  several processes the caller must not start programs of its own between two groups.

  Args:
    tokenizer: decodes the responses' text.
    stop_ids: token ids that end a response.
    width: responses that decode side by side; a group of n takes n of them.
    check: called before each decoding, by all processes; what it raises ends `sample`.
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
    self._starter = concurrent.futures.ThreadPoolExecutor(1, "decode")
    self.version = None

  def load_weights(self, model: Qwen2, version: int) -> None:
    self.model, self.layers = _decoding_copy(model)
    self.version = version

  def stats(self) -> dict[str, float]:
    return {}

  def close(self) -> None:
    self._starter.shutdown()
    self.model = self.layers = self.version = None

  def sample(
    self, prompts: Sequence[Prompt], n: int, params: SamplingParams
  ) -> Iterator[list[Rollout]]:
    if self.version is None:
      raise RuntimeError("Sampler.sample: there are no weights; call load_weights first")
    if not prompts:
      return
    model, layers, version = self.model, self.layers, self.version  # these, to the last response
    rows = shards("b")
    count = max(1, self.width // n // rows) * rows  # slots
    batch = max(1, count // 4 // rows) * rows  # prompts read at once
    p = bucket(max(len(prompt.token_ids) for prompt in prompts))
    p = kernels.padded_length(p, model.config.attention)
    how = Decoding(params.temperature, params.top_p, params.top_k, self.stop_ids)
    seed_step = np.array([params.seed, params.step], np.uint32)
    slots = None
    seats: list[Prompt | None] = [None] * count
    begins = np.zeros(count, int)  # ring place of each slot's first token
    column = 0  # slots.column
    waiting, view, ended = list(prompts)[::-1], None, []

    @keep_mesh
    def decode(goal) -> View:
      nonlocal slots
      slots, newer = _decode(model, layers, slots, seed_step, goal, how)
      return newer

    while waiting or any(seats):
      free = [i for i, prompt in enumerate(seats) if prompt is None]
      while waiting and free:
        taken = [waiting.pop() for _ in range(min(batch, len(waiting), len(free)))]
        chosen, free = free[: len(taken)], free[len(taken) :]
        begins[chosen] = (column + 1) % params.max_tokens
        for i, prompt in zip(chosen, taken):
          seats[i] = prompt
        read = _read(model, layers, taken, batch, seed_step, n, p, how)
        if slots is None:  # made while the device reads the first prompts
          slots = _empty(len(layers), count, n, p, params.max_tokens, model.config)
        sources = np.full(count, -1, np.int32)
        sources[chosen] = np.arange(len(taken))
        slots = _insert(slots, sources, *read, how=how)
      goals = _goals(len(free), count, batch, bool(waiting))
      with contextlib.closing(self._ahead(decode, goals)) as views:
        for newer in views:
          # The caller works on these while the device decodes.
          yield from self._groups(view, ended, version)
          view = newer.result()
          column, done_b = int(on_host(view.column)), on_host(view.done_b)
          ended = [(i, begins[i], seats[i]) for i in np.flatnonzero(done_b) if seats[i]]
          for i, *_ in ended:
            seats[i] = None
    yield from self._groups(view, ended, version)

  def _ahead(self, decode, goals) -> Iterator[concurrent.futures.Future]:
    """The Views of `decode` for each goal, each when the one behind it has been handed over too."""
    started = []
    try:
      for goal in goals:
        self._check()
        started.append(self._starter.submit(decode, goal))
        if len(started) > 1:
          yield started[-2]
      yield started[-1]
    finally:  # who leaves early may start other programs: behind these, on every process
      concurrent.futures.wait(started)

  def _groups(self, view: View | None, ended, version) -> Iterator[list[Rollout]]:
    """This process's groups of [(slot, ring place of its first token, prompt)] that ended."""
    if not ended:
      return
    ages_bg, tokens_bgr, logprobs_bgr = map(
      on_host, (view.ages_bg, view.tokens_bgr, view.logprobs_bgr)
    )
    r = tokens_bgr.shape[-1]
    for slot, begin, prompt in ended:
      if slot % jax.process_count() == jax.process_index():
        order_r = (begin + np.arange(r)) % r
        rings = tokens_bgr[slot][:, order_r], logprobs_bgr[slot][:, order_r]
        yield [self._rollout(prompt, version, *row) for row in zip(ages_bg[slot], *rings)]

  def _rollout(self, prompt, version, age, tokens_r, logprobs_r) -> Rollout:
    token_ids = tuple(tokens_r[:age].tolist())
    return Rollout(
      prompt_id=prompt.id,
      token_ids=token_ids,
      sampler_logprobs=tuple(logprobs_r[:age].tolist()),
      finish_reason="stop" if token_ids[-1] in self.stop_ids else "length",
      weight_version=version,
      text=self.tokenizer.decode(token_ids, skip_special_tokens=True),
    )
