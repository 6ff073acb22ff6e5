"""Sampling tokens and known shapes: keys, both platforms' draws, chunks, groups cut into slots."""

import concurrent.futures
import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tiny_policy import PARAMS, PROMPTS, STOPS, TINY, N, Words, assert_same, policy

from srl_jax.policy import attention, cpu, decode_attention
from srl_jax.policy.model import abstract
from srl_jax.policy.sharding import keep_mesh, make_mesh, shards
from srl_jax.rollout import slots
from srl_jax.rollout.engine import Prompt
from srl_jax.rollout.sampler import Sampler
from srl_jax.rollout.slots import SlotShape, slot_shape


@pytest.mark.parametrize("on_cpu", [False, True])
def test_pick_draws_from_the_softmax(on_cpu):
  """Chi-square over 16,384 draws of one distribution, and its power against a near one."""
  logits_v = jnp.asarray(np.random.default_rng(0).normal(0, 1.5, 20), jnp.float32)
  draw = jax.jit(
    lambda temperature: slots.pick(
      jnp.broadcast_to(logits_v, (128, 128, 20)),
      slots.Draws(jnp.array([1, 2], jnp.uint32), temperature, 1),
      jnp.arange(128, dtype=jnp.uint32),
      jnp.zeros(128, jnp.int32),
      jnp.zeros((128, 128), jnp.int32),
      on_cpu,
    )
  )
  for temperature in (1.0, 0.7):
    drawn, logprobs = draw(temperature)
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=20)
    expected = np.asarray(jax.nn.softmax(logits_v / temperature), np.float64)
    p_value = lambda p: scipy.stats.chisquare(counts, p / p.sum() * counts.sum()).pvalue  # noqa: B023
    assert p_value(expected) > 1e-3
    assert p_value(np.asarray(jax.nn.softmax(logits_v / temperature * 1.1), np.float64)) < 1e-6
    np.testing.assert_allclose(logprobs, np.log(expected)[np.asarray(drawn)], atol=1e-5)


@pytest.mark.parametrize("on_cpu", [False, True])
def test_pick_greedy_has_logprobs_at_temperature_1(on_cpu):
  logits_bgv = jnp.asarray(np.random.default_rng(2).normal(0, 1.5, (3, 4, 20)), jnp.float32)
  draws = slots.Draws(jnp.array([1, 2], jnp.uint32), jnp.float32(0), 1)
  streams_b, zeros_b, zeros_bg = (
    jnp.arange(3),
    jnp.zeros(3, jnp.int32),
    jnp.zeros((3, 4), jnp.int32),
  )
  pick = jax.jit(slots.pick, static_argnames="on_cpu")
  tokens, logprobs = pick(logits_bgv, draws, streams_b, zeros_b, zeros_bg, on_cpu=on_cpu)
  assert (tokens == logits_bgv.argmax(axis=-1)).all()
  np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits_bgv).max(axis=-1), atol=1e-6)


def test_pick_without_a_cpu_is_jaxs_categorical():
  logits_bgv = jnp.asarray(np.random.default_rng(3).normal(0, 1.5, (2, 3, 50)), jnp.float32)
  streams_b, zeros_b = jnp.array([4, 5], jnp.uint32), jnp.zeros(2, jnp.int32)
  positions_bg, seed_step = jnp.full((2, 3), 7), jnp.array([1, 2], jnp.uint32)
  draws = slots.Draws(seed_step, jnp.float32(1), 1)
  tokens, _ = slots.pick(logits_bgv, draws, streams_b, zeros_b, positions_bg, False)
  keys = slots.random_keys(seed_step, streams_b, zeros_b, positions_bg)
  assert (tokens == jax.vmap(jax.vmap(jax.random.categorical))(keys, logits_bgv)).all()


def test_cpu_categorical_draws_over_several_blocks():
  """300 entries, two thirds of them impossible, in three blocks, one of next to no weight."""
  rng = np.random.default_rng(1)
  probs_v = np.where(np.arange(300) % 3 == 0, rng.uniform(size=300), 0.0)
  probs_v[128:256] *= 1e-6
  logprobs_v = jnp.log(jnp.asarray(probs_v, jnp.float32))
  keys = jax.random.split(jax.random.key(0), 2**16)
  drawn = np.asarray(jax.jit(jax.vmap(lambda key: cpu.categorical(key, logprobs_v)))(keys))
  counts = np.bincount(drawn, minlength=300)
  assert (counts[probs_v == 0] == 0).all()
  likely = probs_v > 1e-3
  expected = probs_v[likely] / probs_v.sum() * counts.sum()
  assert counts[~likely].sum() <= 5
  assert scipy.stats.chisquare(counts[likely], expected, sum_check=False).pvalue > 1e-3
  assert scipy.stats.chisquare(counts[likely], expected[::-1], sum_check=False).pvalue < 1e-6


@pytest.mark.parametrize("share", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_cpu_categorical_at_the_ends_of_the_interval(monkeypatch, share):
  """Neither the least nor the largest uniform number gives an impossible token."""
  monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, share))
  probs_v = np.zeros(400, np.float32)
  probs_v[[130, 200, 399]] = 1 / 3
  first = int(cpu.categorical(jax.random.key(0), jnp.log(probs_v)))
  assert first == (130 if share == 0 else 399)


def test_pick_has_another_key_for_every_token():
  def keys(streams, offsets, positions):
    seed_step = jnp.array([3, 5], jnp.uint32)
    found = slots.random_keys(seed_step, streams, jnp.array(offsets), positions)
    return np.asarray(jax.random.key_data(found)).reshape(-1, 2)

  streams = jnp.array([slots.stream_of(id) for id in ("a", "b")], jnp.uint32)
  found = np.concatenate([keys(streams, [0, 0], jnp.full((2, 3), t)) for t in range(4)])
  assert len({tuple(key) for key in found}) == 24
  # The second prompt alone, and its last two samples alone.
  assert (keys(streams[1:], [0], jnp.full((1, 3), 2)) == found[15:18]).all()
  assert (keys(streams[1:], [1], jnp.full((1, 2), 2)) == found[16:18]).all()


# ---- known shapes

MESHES = [None, "fsdp=2,tensor=2"]


def on(mesh):
  return jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext()


def sample(shapes, prompts=PROMPTS, n=N, **changed):
  """{prompt id: group}, sampled in these shapes alone."""
  made = Sampler(Words(), STOPS, 16, shapes=shapes)
  made.load_weights(policy(), 1)
  groups = list(made.sample(prompts, n, dataclasses.replace(PARAMS, **changed)))
  assert len(groups) == len(prompts) and all(len(group) == n for group in groups)
  return {group[0].prompt_id: group for group in groups}


def test_slot_shape_has_room_for_its_prompts():
  for longest in (1, 33, 900, 1024, 1025, 1500, 4000, 32000):
    for kernel in ("xla", "cudnn"):
      for rows in (1, 3, 8):
        shape = slot_shape(512, 8, longest, 100, rows, kernel)
        assert longest <= shape.p and shape.p % shape.c == 0 and (shape.g, shape.r) == (8, 100)
        assert (shape.c == shape.p) == (longest <= 1024) and shape.c <= 1024
        assert shape.b % rows == shape.batch % rows == 0 < shape.batch <= shape.b
        assert 64 - rows < shape.b <= 64
        assert kernel == "xla" or shape.c % 128 == 0
  assert slot_shape(4, 8, 10, 100).b == 1  # a width below the group


@pytest.mark.parametrize("mesh", MESHES)
def test_prefill_in_chunks_equals_one_prefill(mesh):
  """Around the boundaries of chunks of 16, prompts of different lengths in one prefill."""
  rng = np.random.default_rng(5)
  prompts = [
    Prompt(f"long {length}", tuple(rng.integers(1, 96, length).tolist()))
    for length in (15, 16, 17, 1, 32, 31, 33, 64, 63, 48)
  ]
  with on(mesh):
    whole = sample([SlotShape(b=4, g=N, p=64, r=12, batch=2, c=64)], prompts)
    assert_same(sample([SlotShape(b=4, g=N, p=64, r=12, batch=2, c=16)], prompts), whole)


def test_prefill_of_a_long_prompt_needs_all_chunks():
  """Another first token, three chunks before the end, changes the log-probs of what is sampled."""
  prompt = Prompt("x", tuple(np.random.default_rng(6).integers(1, 96, 50).tolist()))
  other = dataclasses.replace(prompt, token_ids=(95 - prompt.token_ids[0], *prompt.token_ids[1:]))
  first, second = (
    sample([SlotShape(b=1, g=N, p=64, r=12, batch=1, c=16)], [p])["x"] for p in (prompt, other)
  )
  assert abs(first[0].sampler_logprobs[0] - second[0].sampler_logprobs[0]) > 1e-3


@pytest.mark.parametrize("mesh, g", [(None, 1), (None, 3), ("fsdp=2,tensor=2", 3)])
def test_slots_of_a_group_in_parts_sample_the_same(mesh, g):
  """Of 4 responses in slots of 3 the second slot has one; its others are done from the start."""
  with on(mesh):
    whole = sample([SlotShape(b=4, g=N, p=32, r=12, batch=2, c=32)])
    assert_same(sample([SlotShape(b=8, g=g, p=32, r=12, batch=2, c=32)]), whole)


def test_slots_with_spare_room_sample_the_same():
  """Longer ring buffers and prompts than needed; max_tokens and temperature are the call's."""
  roomy = [SlotShape(b=3, g=N, p=96, r=40, batch=2, c=96)]
  for changed in (dict(max_tokens=5), dict(max_tokens=5, temperature=0.0)):
    exact = [SlotShape(b=4, g=N, p=32, r=5, batch=2, c=32)]
    assert_same(sample(roomy, **changed), sample(exact, **changed))


def test_slots_sample_the_same_with_the_kernel_of_gpus(monkeypatch):
  """In Pallas' interpreter; the ring buffers of 13 wrap around while slots are refilled."""
  expected = sample([SlotShape(b=4, g=N, p=32, r=12, batch=2, c=32)])
  by_rows = SlotShape(b=4, g=N, p=32, r=13, batch=2, c=32)  # a shape that is compiled here alone
  monkeypatch.setattr(attention, "decodes_by_row", lambda kernel, head_dim: True)
  interpreted = functools.partial(decode_attention.decode, interpret=True)
  monkeypatch.setattr(decode_attention, "decode", interpreted)
  assert slots.empty(by_rows, TINY)[0].caches[0][2].shape == (4, N, 2, 13, 32)
  assert_same(sample([by_rows]), expected)


@contextlib.contextmanager
def compilations():
  """The names of the programs that are compiled in the test."""
  names = []

  def listen(name, seconds, **fields):
    if name == "/jax/core/compile/backend_compile_duration":
      names.append(fields.get("fun_name", name))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield names
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def compile_ahead(calls):
  compile_one = keep_mesh(
    lambda _, function, args, kwargs: function.lower(*args, **kwargs).compile()
  )
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for done in [pool.submit(compile_one, *call) for call in calls]:
      done.result()


@pytest.mark.parametrize("mesh", [None, "data=2", "fsdp=2,tensor=2"])
def test_slot_calls_are_all_that_is_compiled(mesh):
  """Training, validation (greedy) and a benchmark of longer responses and prompts; two shapes.

  A request that fits neither shape compiles, which shows that compilations are counted.
  """
  with on(mesh):
    training = slot_shape(64, 8, 32, 12, shards("b"))
    single = SlotShape(b=8, g=1, p=64, r=20, batch=4, c=32)
    made = Sampler(Words(), STOPS, 64, shapes=[training, single])
    jax.clear_caches()
    model = policy()
    calls = made.calls(abstract(TINY))
    assert len(calls) == 1 + 2 * 3
    compile_ahead(calls)
    long = [Prompt(f"long {length}", (5,) * length) for length in (40, 64)]
    with compilations() as found:
      made.load_weights(model, 1)
      list(made.sample(PROMPTS, 8, PARAMS))
      list(made.sample(PROMPTS, 1, dataclasses.replace(PARAMS, temperature=0.0, max_tokens=20)))
      list(made.sample([*PROMPTS[:3], *long], 8, dataclasses.replace(PARAMS, max_tokens=20)))
      list(made.sample(PROMPTS[:4], 11, dataclasses.replace(PARAMS, max_tokens=3)))
      made.load_weights(model, 2)
      list(made.sample(PROMPTS[:2], 8, PARAMS))
      known = list(found)
      list(made.sample(PROMPTS[:1], 1, dataclasses.replace(PARAMS, max_tokens=21)))
  assert not known and found


def test_slot_shape_of_a_call_serves_the_next():
  made = Sampler(Words(), STOPS, 16)
  made.load_weights(policy(), 1)
  list(made.sample(PROMPTS[:4], 2, dataclasses.replace(PARAMS, max_tokens=9)))
  with compilations() as found:
    list(made.sample(PROMPTS[4:7], 2, dataclasses.replace(PARAMS, max_tokens=4, temperature=0.5)))
    assert not found
    list(made.sample(PROMPTS[:1], 3, dataclasses.replace(PARAMS, max_tokens=9)))
    assert found  # not cut into slots of 2
