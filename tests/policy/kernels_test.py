"""Attention kernels: equal to plain XLA, and nothing leaks from padding or from the row's end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.policy import kernels

LENGTHS = [256, 100, 1]
RUN = {
  "xla": kernels._xla,
  "cudnn": kernels._cudnn,
  # On this machine the TPU's kernel runs in Pallas' interpreter.
  "splash": functools.partial(kernels._splash, interpret=jax.default_backend() != "tpu"),
}


def arrays(seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  shapes = [(3, 256, 4, 64), (3, 256, 2, 64), (3, 256, 2, 64)]
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def results(kernel, q, k, v, slope):
  """(out, gradients of q, k, v), cut to the real tokens."""
  lengths = jnp.array(LENGTHS, jnp.int32)
  real = (jnp.arange(256) < lengths[:, None])[:, :, None, None]
  run = lambda *args: jnp.where(real, RUN[kernel](*args, lengths), 0)
  out, back = jax.vjp(run, q, k, v)
  return [np.asarray(x, np.float32) for x in (out, *back(slope.astype(out.dtype)))]


def reference(q, k, v, slope):
  """The same by plain softmax attention in float64, a row, a head and a token at a time."""
  q, k, v, slope = (np.asarray(x, np.float64) for x in (q, k, v, slope))
  out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
  for b, length in enumerate(LENGTHS):
    for head in range(q.shape[2]):
      s = head // 2
      scores = q[b, :length, head] @ k[b, :length, s].T / 8
      scores[np.triu_indices(length, 1)] = -np.inf
      probs = np.exp(scores - scores.max(axis=1, keepdims=True))
      probs /= probs.sum(axis=1, keepdims=True)
      out[b, :length, head] = probs @ v[b, :length, s]
      dv[b, :length, s] += probs.T @ slope[b, :length, head]
      dprobs = slope[b, :length, head] @ v[b, :length, s].T
      dscores = probs * (dprobs - (probs * dprobs).sum(axis=1, keepdims=True))
      dq[b, :length, head] = dscores @ k[b, :length, s] / 8
      dk[b, :length, s] += dscores.T @ q[b, :length, head] / 8
  return out, dq, dk, dv


def runs(kernel):
  if kernel == "cudnn" and jax.default_backend() != "gpu":
    pytest.skip("cuDNN's attention needs an NVIDIA card (JAX_PLATFORMS=cuda)")
  # cuDNN computes in bfloat16; a difference of results of size 1 then shows at 1e-2.
  return (jnp.bfloat16, 5e-2) if kernel == "cudnn" else (jnp.float32, 2e-5)


@pytest.mark.parametrize("kernel", RUN)
def test_kernel_equals_plain_attention(kernel):
  dtype, atol = runs(kernel)
  q, k, v = arrays(0, dtype)
  slope = arrays(1, dtype)[0]
  for found, wanted in zip(results(kernel, q, k, v, slope), reference(q, k, v, slope)):
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=0)


@pytest.mark.parametrize("kernel", RUN)
def test_kernel_leaks_nothing_between_segments(kernel):
  """Neither changes a bit of the output before it, nor of the gradients."""
  dtype, _ = runs(kernel)
  q, k, v = arrays(0, dtype)
  slope = arrays(1, dtype)[0]
  real = (jnp.arange(256) < jnp.array(LENGTHS)[:, None])[:, :, None, None]
  dirty = [jnp.where(real, x, y) for x, y in zip((q, k, v), arrays(2, dtype))]
  for found, wanted in zip(
    results(kernel, *dirty, jnp.where(real, slope, 7)), results(kernel, q, k, v, slope)
  ):
    mask = np.broadcast_to(np.asarray(real), found.shape)
    assert (found[mask] == wanted[mask]).all()
  # Later tokens: those after token 60 of a row.
  changed = [x.at[:, 61:].set(y[:, 61:]) for x, y in zip((q, k, v), arrays(3, dtype))]
  found, wanted = (results(kernel, *x, slope)[0] for x in (changed, (q, k, v)))
  assert (found[:2, :61] == wanted[:2, :61]).all() and (found[0, 61:] != wanted[0, 61:]).any()


@pytest.mark.parametrize(
  "platform, dtype, head_dim, kernel",
  [
    ("cpu", "float32", 64, "cpu"),
    ("cpu", "bfloat16", 128, "cpu"),
    ("gpu", "bfloat16", 128, "cudnn"),
    ("gpu", "float32", 128, "xla"),
    ("gpu", "bfloat16", 256, "xla"),
    ("tpu", "bfloat16", 128, "splash"),
    ("tpu", "float32", 32, "xla"),
  ],
)
def test_kernel_of_each_platform(platform, dtype, head_dim, kernel):
  assert kernels.choose(platform, dtype, head_dim) == kernel


def test_kernel_output_beyond_the_lengths_is_zero():
  q, k, v = arrays()
  out = kernels.causal(q, k, v, jnp.array(LENGTHS, jnp.int32), "xla")
  assert (np.asarray(out)[1, 100:] == 0).all() and np.abs(np.asarray(out)[1, :100]).min() > 0
