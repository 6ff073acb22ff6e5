"""cuDNN's attention in lines: its gradient, and what each remat policy recomputes.

Without a card the kernel's two calls are written in plain XLA for the gradient; what is recomputed
is counted in jaxprs with JAX's own calls, which can be traced anywhere.
"""

import collections
import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding

from srl_jax.policy import cudnn, kernels
from srl_jax.policy import model as M
from srl_jax.policy.attention import Lines, visible
from srl_jax.policy.sharding import act_spec, make_mesh
from tests.policy.attention_test import lines_of_two_groups

CONFIG = M.ModelConfig(64, 128, 256, 2, 4, 2, 64, dtype="bfloat16", attention="cudnn")


@pytest.fixture
def any_cudnn(monkeypatch):
  """JAX checks the version of cuDNN when it traces the kernel, and this machine has none."""
  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def primitives(jaxpr) -> collections.Counter:
  """How often each primitive occurs in a jaxpr, the body of a loop counted once."""
  found = collections.Counter()
  for equation in jaxpr.eqns:
    found[equation.primitive.name] += 1
    for inner in jaxprs_in_params(equation.params):
      found += primitives(inner)
  return found


def of_gradient(remat) -> collections.Counter:
  """The primitives of the gradient of one layer (a scan's body) of packed rows in lines."""

  def loss(model, tokens_bt, lines):
    args = tokens_bt, tokens_bt, tokens_bt, tokens_bt, lines
    return model.hidden(*args, remat=remat).astype(jnp.float32).sum()

  mesh = jax.sharding.get_mesh()
  sharding = None if mesh.empty else NamedSharding(mesh, act_spec("b"))
  ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
  lines = Lines(ints(8, 2, 256), ints(8, 256, 2))
  traced = jax.make_jaxpr(jax.grad(loss))(M.abstract(CONFIG), ints(8, 256), lines)
  return primitives(traced.jaxpr)


@pytest.mark.parametrize("mesh", [None, "data=2,fsdp=2,tensor=2"])
@pytest.mark.parametrize("remat, forward", [("full", 2), ("attention", 1), ("matmuls", 1)])
def test_attention_runs_forward_once_unless_all_is_recomputed(any_cudnn, remat, forward, mesh):
  with jax.set_mesh(make_mesh(mesh)) if mesh else contextlib.nullcontext():
    found = of_gradient(remat)
  assert found["dot_product_attention_fwd_wrapper"] == forward
  assert found["dot_product_attention_bwd_wrapper"] == 1


def test_policies_recompute_fewer_products_the_more_they_keep(any_cudnn):
  """A layer has 7 products, each with 2 in its gradient; `down`'s result is never recomputed."""
  products = {remat: of_gradient(remat)["dot_general"] for remat in M.REMAT}
  recomputed = {remat: count - products["none"] for remat, count in products.items()}
  assert recomputed == {"none": 0, "matmuls": 0, "attention": 2, "full": 6}


def scores_and_mask(q_btnh, k_btkh, lengths_b):
  """(scores_bnts, whether query t sees key s), with the keys of a query head in its place."""
  t, n, h = q_btnh.shape[1:]
  k_btnh = jnp.repeat(k_btkh, n // k_btkh.shape[2], axis=2)
  index = jnp.arange(t)
  inside_bt = index < lengths_b[:, None]
  mask_bts = (index[:, None] >= index) & inside_bt[:, None, :] & inside_bt[:, :, None]
  return jnp.einsum("btnh,bsnh->bnts", q_btnh, k_btnh) / h**0.5, mask_bts[:, None]


def plain_forward(q_btnh, k_btkh, v_btkh, lengths_b):
  """cudnn.forward; 7 at padding, which must not be used."""
  scores_bnts, mask = scores_and_mask(q_btnh, k_btkh, lengths_b)
  stats_bnt = jax.nn.logsumexp(jnp.where(mask, scores_bnts, -jnp.inf), axis=-1)
  v_btnh = jnp.repeat(v_btkh, q_btnh.shape[2] // v_btkh.shape[2], axis=2)
  probs_bnts = jnp.where(mask, jnp.exp(scores_bnts - stats_bnt[..., None]), 0)
  out_btnh = jnp.einsum("bnts,bsnh->btnh", probs_bnts, v_btnh)
  real = mask.any(axis=-1)
  return jnp.where(real[:, 0, :, None, None], out_btnh, 7), jnp.where(real, stats_bnt, 7)


def plain_backward(q_btnh, k_btkh, v_btkh, lengths_b, out_btnh, stats_bnt, grad_btnh):
  """cudnn.backward by the formulas of FlashAttention-2; 7 at padding."""
  scores_bnts, mask = scores_and_mask(q_btnh, k_btkh, lengths_b)
  (b, t, n, h), k = q_btnh.shape, k_btkh.shape[2]
  spread = lambda x: jnp.repeat(x, n // k, axis=2)
  probs_bnts = jnp.where(mask, jnp.exp(scores_bnts - stats_bnt[..., None]), 0)
  delta_bnt = (grad_btnh * out_btnh).sum(axis=-1).transpose(0, 2, 1)
  slope_bnts = jnp.einsum("btnh,bsnh->bnts", grad_btnh, spread(v_btkh)) - delta_bnt[..., None]
  slope_bnts *= probs_bnts / h**0.5
  dq = jnp.einsum("bnts,bsnh->btnh", slope_bnts, spread(k_btkh))
  dk = jnp.einsum("bnts,btnh->bsnh", slope_bnts, q_btnh)
  dv = jnp.einsum("bnts,btnh->bsnh", probs_bnts, grad_btnh)
  dk, dv = (x.reshape(b, t, k, n // k, h).sum(axis=3) for x in (dk, dv))
  inside = (jnp.arange(t) < lengths_b[:, None])[:, :, None, None]
  return [jnp.where(inside, x, 7) for x in (dq, dk, dv)]


def test_gradient_in_lines_equals_that_of_masked_attention(monkeypatch):
  """Ragged groups, a line without a token, grouped queries; on a card by the kernel itself."""
  dtype, atol = jnp.bfloat16, 5e-2
  if jax.default_backend() != "gpu":
    monkeypatch.setattr(cudnn, "forward", plain_forward)
    monkeypatch.setattr(cudnn, "backward", plain_backward)
    dtype, atol = jnp.float32, 1e-5
  state = lines_of_two_groups()
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, slope = (
    jax.random.normal(key, (1, 16, n, 64)).astype(dtype) for key, n in zip(keys, (4, 2, 2, 4))
  )
  real = (state.segments_bt > 0)[:, :, None, None]
  slope = jnp.where(real, slope, 0)
  in_lines = lambda *qkv: cudnn.attend_in_lines(*qkv, jax.tree.map(jnp.asarray, state.layout))
  masked = lambda *qkv: kernels.masked(*qkv, visible(state))
  (out, back), (wanted, wanted_back) = jax.vjp(in_lines, q, k, v), jax.vjp(masked, q, k, v)
  np.testing.assert_allclose(out, jnp.where(real, wanted, 0), atol=atol, rtol=0)
  for found, expected in zip(back(slope), wanted_back(slope)):
    assert jnp.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)
