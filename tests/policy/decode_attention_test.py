"""The decode kernels of GPUs equal the plain form; on a CPU Pallas' interpreter runs them.

On a card: JAX_PLATFORMS=cuda pytest tests/policy/decode_attention_test.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.policy import decode_attention, sharding
from srl_jax.policy.attention import Cached, CachedRows, attend, cached_of

ATOL = {"float32": 2e-5, "bfloat16": 2e-2}
decode = functools.partial(decode_attention.decode, interpret=jax.default_backend() != "gpu")


def case(b, g, k, heads, h, p, r, column, dtype="float32", seed=0):
  """(q_bgnh, CachedRows) with lengths from 1 to the most; NaN in all entries that are not read."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  lengths_b, ages_bg = rng.integers(1, p + 1, b), rng.integers(1, r + 1, (b, g))
  lengths_b[:2], ages_bg.flat[:2] = [p, 1][:b], [r, 1][: b * g]
  unseen = np.arange(p) >= lengths_b[:, None]
  prompt = [jnp.where(unseen[:, None, :, None], jnp.nan, draw(b, k, p, h)) for _ in range(2)]
  old = (column - np.arange(r)) % r >= ages_bg[:, :, None]
  rings = [jnp.where(old[:, :, None, :, None], jnp.nan, draw(b, g, k, r, h)) for _ in range(2)]
  ints = (jnp.asarray(x, jnp.int32) for x in (lengths_b, column, ages_bg))
  lengths_b, column, ages_bg = ints
  return draw(b, g, k * heads, h), CachedRows(*prompt, lengths_b, *rings, column, ages_bg)


def plain(q_bgnh, state):
  """The same by attend of Cached, which writes the newest entry once more."""
  # It multiplies entries that are not seen by 0, so they must be finite.
  state = CachedRows(*map(jnp.nan_to_num, state))
  newest = [x[:, :, :, state.column] for x in (state.k_bgkrh, state.v_bgkrh)]
  state = Cached(*state)._replace(k_bgkhr=state.k_bgkrh.swapaxes(3, 4))
  return attend(q_bgnh, *newest, state)[0]


def check(q_bgnh, state):
  found = jax.jit(decode)(q_bgnh, *state)
  assert found.dtype == q_bgnh.dtype
  with jax.default_matmul_precision("highest"):  # a card would round float32 to TF32
    wanted = np.float32(jax.jit(plain)(q_bgnh, state))
  np.testing.assert_allclose(np.float32(found), wanted, atol=ATOL[str(q_bgnh.dtype)], rtol=0)


@pytest.mark.parametrize("dtype", ATOL)
@pytest.mark.parametrize("heads", [1, 2, 6, 7])
def test_decode_equals_the_plain_form(heads, dtype):
  """Lengths of a part of a block and of several parts; responses around the end of the buffer."""
  check(*case(b=3, g=2, k=2, heads=heads, h=32, p=300, r=200, column=70, dtype=dtype))


@pytest.mark.parametrize(
  "sizes",
  [
    dict(b=1, g=1, k=1, heads=1, h=16, p=1, r=1, column=0),
    dict(b=2, g=1, k=2, heads=7, h=64, p=64, r=64, column=63),
    dict(b=1, g=4, k=1, heads=2, h=16, p=65, r=128, column=0),
    dict(b=1, g=4, k=1, heads=2, h=16, p=30, r=129, column=128),
    dict(b=2, g=20, k=1, heads=7, h=16, p=70, r=12, column=5),
  ],
  ids=["ones", "one response", "first column", "last column", "more rows than a program has"],
)
def test_decode_at_the_ends_of_the_sizes(sizes):
  check(*case(**sizes))


@pytest.mark.parametrize("ages", [[64, 65, 190], [70, 71, 72], [200, 199, 6]])
def test_decode_around_the_end_of_the_ring_buffer(ages):
  """Column 70 of 200 entries: the oldest entry in, at the start of and after the newest's block."""
  q_bgnh, state = case(b=1, g=3, k=1, heads=2, h=16, p=10, r=200, column=70)
  state = CachedRows(*map(jnp.nan_to_num, state))._replace(ages_bg=jnp.array([ages]))
  check(q_bgnh, state)


def test_decode_with_large_scores_is_finite():
  q_bgnh, state = case(b=2, g=2, k=1, heads=2, h=16, p=150, r=150, column=3)
  check(q_bgnh * 50, state)


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices, simulated or real")
def test_decode_on_a_mesh(monkeypatch):
  monkeypatch.setattr(decode_attention, "decode", decode)
  q_bgnh, state = case(b=4, g=2, k=2, heads=2, h=16, p=40, r=20, column=7)
  newest = [x[:, :, :, 7] for x in (state.k_bgkrh, state.v_bgkrh)]
  args = q_bgnh, *newest
  expected = jax.jit(attend, static_argnames="kernel")(*args, state, kernel="cudnn")
  mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
  put = lambda x, letters: sharding.put(np.asarray(x), letters, mesh)
  letters = "bkph", "bkph", "b", "bgkrh", "bgkrh", "", "bg"
  state = CachedRows(*map(put, state, letters))
  args = [put(x, letters) for x, letters in zip(args, ("bgnh", "bgkh", "bgkh"))]
  with jax.set_mesh(mesh):
    found = jax.jit(attend, static_argnames="kernel")(*args, state, kernel="cudnn")
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def abstract_gpu():
  """A mesh of one H100 that is not there; JAX 0.11 chooses by it what it lowers."""
  device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.AbstractMesh((1,), ("x",), kinds, abstract_device=device)
  return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize(
  "k, heads, p, r", [(2, 6, 512, 256), (4, 7, 4096, 2048), (4, 7, 1500, 1000)]
)
def test_decode_lowers_for_a_gpu(k, heads, p, r):
  """The widths of 1.5B and 7B, for a card that need not be there: two kernels."""
  b, g, h = 32, 8, 128
  ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  halves = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  prompt, ring = halves(b, k, p, h), halves(b, g, k, r, h)
  args = halves(b, g, k * heads, h), prompt, prompt, ints(b), ring, ring, ints(), ints(b, g)
  with abstract_gpu():
    traced = jax.jit(decode_attention.decode).trace(*args)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("stablehlo.custom_call") == 2


@pytest.mark.parametrize(
  "kernel, head_dim, state",
  [("cudnn", 128, CachedRows), ("cudnn", 80, Cached), ("xla", 128, Cached), ("cpu", 64, Cached)],
)
def test_cached_of_each_platform(kernel, head_dim, state):
  assert cached_of(kernel, head_dim) is state
