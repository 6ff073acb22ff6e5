"""The built-in rollout engine: continuous batching with a KV cache on the policy's own mesh.

A fixed number of slots decode together (slots.py has what runs on the device). When all responses
of a slot have ended, the next prompt is prefilled into it while the others continue, so a batch
does not wait for its longest response. A group of more responses than a slot has is cut into
pieces, each of which has a slot.
"""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srl_jax.data.tokenizer import decode
from srl_jax.policy.lora import split, with_lora
from srl_jax.policy.model import Qwen2
from srl_jax.policy.sharding import keep_mesh, on_host, on_mesh, shards
from srl_jax.rollout import decoding_weights
from srl_jax.rollout import slots as device
from srl_jax.rollout.engine import Prompt, Rollout, SamplingParams
from srl_jax.rollout.slots import Draws, HostSnapshot, NewPrompts, SlotShape, slot_shape


class Piece(NamedTuple):
  """The responses of a prompt that one slot samples.

  Fields:
    prompt: the prompt.
    order: its index among the prompts of the call.
    offset: the index of the piece's first response in the group.
    count: responses, at most as many as a slot has.
  """

  prompt: Prompt
  order: int
  offset: int
  count: int


def cut(prompts: Sequence[Prompt], n: int, g: int) -> list[Piece]:
  """Groups of n responses as pieces of at most g, those of a prompt one after the other."""
  pieces = []
  for order, prompt in enumerate(prompts):
    for offset in range(0, n, g):
      pieces.append(Piece(prompt, order, offset, min(g, n - offset)))
  return pieces


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


class _Decoder:
  """The slots of one call of Sampler.sample, and the piece that each of them has.

  `decode` runs in the dispatcher's thread; the caller calls `fill` when no `decode` is in flight.
  """

  def __init__(self, model, layers, shape: SlotShape, draws: Draws, stop_ids):
    self._model, self._layers, self._shape = model, layers, shape
    self._how = dict(draws=draws, stop_ids=stop_ids)
    self._slots, self._buffers = device.empty(shape=shape, config=model.config)
    self._pieces: list[Piece | None] = [None] * shape.b
    self._first_columns = np.zeros(shape.b, int)  # the ring buffer's column of each first token
    self._column = 0  # slots.column

  def free(self) -> list[int]:
    """The slots without a piece."""
    return [i for i, piece in enumerate(self._pieces) if piece is None]

  def fill(self, waiting: list[Piece]) -> None:
    """Prefills pieces, which it takes from the end of `waiting`, into the free slots."""
    free = self.free()
    # Several prefills, because one has a fixed number of prompts (SlotShape.batch).
    while waiting and free:
      taken = [waiting.pop() for _ in range(min(self._shape.batch, len(waiting), len(free)))]
      chosen, free = free[: len(taken)], free[len(taken) :]
      # The first tokens go to the column after the current one (slots._record).
      self._first_columns[chosen] = (self._column + 1) % self._shape.r
      for slot, piece in zip(chosen, taken):
        self._pieces[slot] = piece
      self._prefill(taken, chosen)
    if not waiting:
      self._buffers = None  # frees them

  def _prefill(self, pieces: list[Piece], chosen: list[int]) -> None:
    """Prefills at most SlotShape.batch pieces into the chosen slots, chunk by chunk."""
    batch, c = self._shape.batch, self._shape.c
    # Rows without a piece are padding: one token, no responses, and no slot takes them.
    tokens_bp = np.zeros((batch, self._shape.p), np.int32)
    lengths_b, streams_b = np.ones(batch, np.int32), np.zeros(batch, np.uint32)
    offsets_b, counts_b = np.zeros((2, batch), np.int32)
    for row, (prompt, _, offset, count) in enumerate(pieces):
      lengths_b[row] = len(prompt.token_ids)
      tokens_bp[row, : lengths_b[row]] = prompt.token_ids
      streams_b[row], offsets_b[row], counts_b[row] = device.stream_of(prompt.id), offset, count
    prompts = NewPrompts(lengths_b, streams_b, offsets_b, counts_b)
    # sources[slot] is the row of the prompt that the slot takes, with the last chunk.
    none = np.full(self._shape.b, -1, np.int32)
    sources = none.copy()
    sources[chosen] = np.arange(len(pieces))

    longest = lengths_b.max()
    for start in range(0, longest, c):
      self._slots, self._buffers = device.prefill(
        self._model,
        self._layers,
        self._slots,
        self._buffers,
        tokens_bp[:, start : start + c],
        np.int32(start),
        prompts,
        sources if start + c >= longest else none,
        **self._how,
      )

  def decode(self, free_slots: int) -> HostSnapshot:
    """Decodes until that number of slots is done or empty."""
    self._slots, snapshot = device.decode(
      self._model, self._layers, self._slots, np.int32(free_slots), **self._how
    )
    return snapshot

  def ended(self, snapshot: HostSnapshot) -> list[tuple[int, int, Piece]]:
    """[(slot, column of its first token, piece)] that have ended since; their slots are free."""
    self._column, done_b = int(on_host(snapshot.column)), on_host(snapshot.done_b)
    ended = []
    for i in np.flatnonzero(done_b):
      if self._pieces[i] is not None:
        ended.append((int(i), int(self._first_columns[i]), self._pieces[i]))
        self._pieces[i] = None
    return ended


class Sampler:
  """The built-in engine (rollout.engine.Engine).

  Decode calls are dispatched from a thread, at most two ahead, so that the device decodes while
  the caller works on finished groups. The thread is there because on GPUs dispatching a while_loop
  blocks the host until the loop ends. With several processes the caller must not launch device
  programs between two groups, because all processes must launch theirs in the same order.

  A call of `sample` runs in the known shape in which its groups need the fewest entries of the KV
  cache; its groups may be larger than a slot and are then cut. A call that fits no known shape
  makes one, which later calls of the same n use if they fit it.

  Args:
    tokenizer: decodes the responses' text.
    stop_ids: token ids that end a response.
    width: responses that decode together in a shape that a call makes.
    check: called before each decode call, by all processes; what it raises ends `sample`.
    shapes: the known shapes (slots.slot_shape); for a mesh, those of its shards.
  """

  def __init__(
    self,
    tokenizer,
    stop_ids: Sequence[int],
    width: int,
    check: Callable[[], None] = lambda: None,
    shapes: Sequence[SlotShape] = (),
  ):
    self.tokenizer = tokenizer
    self.stop_ids = tuple(stop_ids)
    self.width = width
    self.shapes = tuple(shapes)
    self._made: list[SlotShape] = []
    self._check = check
    self._dispatcher = concurrent.futures.ThreadPoolExecutor(1, "decode")
    self._base = self._copy = None  # frozen weights, by their embedding, and what decodes with them
    self.version = None

  def load_weights(self, model: Qwen2, version: int) -> None:
    """See Engine. The frozen weights of a policy with adapters are copied once, unstacked ones
    (policy.lora.unstack) never.
    """
    adapters, base = split(model)
    if base is None:
      self.model, self.layers = decoding_weights.decoding_copy(model)
    else:
      if self._base is not base.embed_tokens[...]:
        self._base, self._copy = base.embed_tokens[...], decoding_weights.of_frozen(base)
      self.model, layers = self._copy
      parts = decoding_weights.decoding_adapters(adapters, dtype=model.config.dtype)
      self.layers = list(map(with_lora, layers, parts))
    self.version = version

  def stats(self) -> dict[str, float]:
    return {}

  def close(self) -> None:
    self._dispatcher.shutdown()
    self.model = self.layers = self.version = self._base = self._copy = None

  def sample(
    self, prompts: Sequence[Prompt], n: int, params: SamplingParams
  ) -> Iterator[list[Rollout]]:
    if self.version is None:
      raise RuntimeError("Sampler.sample: there are no weights; call load_weights first")
    if not prompts:
      return
    longest = max(len(prompt.token_ids) for prompt in prompts)
    shape = self._shape_for(n, longest, params.max_tokens)
    seed_step = np.array([params.seed, params.step], np.uint32)
    draws = Draws(seed_step, np.float32(params.temperature), np.int32(params.max_tokens))
    # An open iterator keeps sampling with the weights with which it began.
    version = self.version
    decoder = _Decoder(self.model, self.layers, shape, draws, self.stop_ids)
    # Reversed, because `fill` takes pieces from the end.
    waiting, snapshot, ended = cut(prompts, n, shape.g)[::-1], None, []
    groups: dict[int, list[Rollout | None]] = {}  # those of which a piece has ended, by its order
    while waiting or len(decoder.free()) < shape.b:
      decoder.fill(waiting)
      targets = _free_slot_targets(len(decoder.free()), shape.b, shape.batch, bool(waiting))
      # Each newer snapshot is awaited only after the groups of the one before have been yielded.
      run = self._decode_ahead(keep_mesh(decoder.decode), targets)
      with contextlib.closing(run) as snapshots:
        for newer in snapshots:
          # The caller works on these groups while the device decodes.
          yield from self._groups(snapshot, ended, groups, n, version)
          snapshot = newer.result()
          ended = decoder.ended(snapshot)
    yield from self._groups(snapshot, ended, groups, n, version)

  def calls(self, model: Qwen2) -> list[tuple]:
    """(name, jitted function, args, kwargs) of the programs of `shapes`, to compile them ahead.

    `function.lower(*args, **kwargs).compile()`, also in a thread (sharding.keep_mesh), makes the
    calls of load_weights and sample compile nothing.

    Args:
      model: policy.model.abstract, or with the shapes, types and shardings of the policy otherwise.
    """
    copy, found = self._loading(on_mesh(model))
    host = jax.ShapeDtypeStruct  # of a numpy array, which has no sharding
    scalar = host((), jnp.int32)
    draws = Draws(host((2,), jnp.uint32), host((), jnp.float32), scalar)
    how = dict(draws=draws, stop_ids=self.stop_ids)
    # Types and shardings exactly as in the calls of `sample`, which would compile again otherwise.
    for shape in self.shapes:
      name = f"{shape.b} slots of {shape.g}"
      static = dict(shape=shape, config=model.config)
      slots, buffers = on_mesh(device.empty.eval_shape(**static))
      prompts = NewPrompts(*[host((shape.batch,), jnp.int32)] * 4)
      prompts = prompts._replace(streams_b=host((shape.batch,), jnp.uint32))
      chunk = host((shape.batch, shape.c), jnp.int32), scalar, prompts, host((shape.b,), jnp.int32)
      found.append((name, device.empty, (), static))
      found.append((f"prefill of {name}", device.prefill, (*copy, slots, buffers, *chunk), how))
      found.append((f"decode of {name}", device.decode, (*copy, slots, scalar), how))
    return found

  def _loading(self, model: Qwen2) -> tuple[tuple, list[tuple]]:
    """(The shapes of what decodes, the programs of load_weights as `calls` has them)."""
    adapters, base = split(model)
    whole = model if base is None else base
    if decoding_weights.is_unstacked(whole):
      (outside, layers), found = decoding_weights.layers_of(whole), []
    else:
      outside, layers = on_mesh(decoding_weights.decoding_copy.eval_shape(whole))
      found = [("weights for decoding", decoding_weights.decoding_copy, (whole,), {})]
    if base is not None:
      how = {"dtype": model.config.dtype}
      parts = on_mesh(decoding_weights.decoding_adapters.eval_shape(adapters, **how))
      layers = list(map(with_lora, layers, parts))
      found.append(("adapters for decoding", decoding_weights.decoding_adapters, (adapters,), how))
    return (outside, layers), found

  def _shape_for(self, n: int, longest: int, max_tokens: int) -> SlotShape:
    """The known shape for groups of n and prompts of at most `longest` tokens, or a new one."""
    known = [shape for shape in self.shapes if shape.g <= n]
    known += [shape for shape in self._made if shape.g == n]
    fits = [shape for shape in known if shape.p >= longest and shape.r >= max_tokens]
    if fits:
      # A group has ceil(n / g) slots. Each has p entries of the KV cache for its prompt and g ring
      # buffers of r.
      return min(fits, key=lambda shape: -(-n // shape.g) * (shape.p + shape.g * shape.r))
    kernel = self.model.config.attention
    made = slot_shape(self.width, n, longest, max_tokens, shards("b"), kernel)
    self._made.append(made)
    return made

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

  def _groups(self, snapshot, ended, groups, n, version) -> Iterator[list[Rollout]]:
    """This process's share of the groups that are whole with the pieces that have ended.

    Args:
      snapshot: HostSnapshot of the call in which they ended, or None without any.
      ended: of _Decoder.ended.
      groups: {order of the prompt: its n responses, None where they have not ended}; changed.
    """
    if not ended:
      return
    ages_bg, tokens_bgr, logprobs_bgr = map(
      on_host, (snapshot.ages_bg, snapshot.tokens_bgr, snapshot.logprobs_bgr)
    )
    r = tokens_bgr.shape[-1]
    for slot, first_column, (prompt, order, offset, count) in ended:
      # All processes decode all groups; process i returns those of prompts i, i + processes, ...
      if order % jax.process_count() != jax.process_index():
        continue
      order_r = (first_column + np.arange(r)) % r  # unrolls the ring: oldest token first
      tokens_gr, logprobs_gr = tokens_bgr[slot][:, order_r], logprobs_bgr[slot][:, order_r]
      group = groups.setdefault(order, [None] * n)
      for g in range(count):
        response = ages_bg[slot, g], tokens_gr[g], logprobs_gr[g]
        group[offset + g] = self._rollout(prompt, version, *response)
      if None not in group:
        yield groups.pop(order)

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
