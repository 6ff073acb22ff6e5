"""The output head in the loss: its gradients are those of a plain product, in the compute type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.policy import head
from srl_jax.policy.model import ModelConfig


def loss_and_inputs(dtype, attention):
  """(a loss of hidden states and a float32 head, and both)."""
  config = ModelConfig(24, 16, 8, 1, 1, 1, 16, dtype=dtype, attention=attention)
  keys = jax.random.split(jax.random.key(0), 3)
  hidden_acd = jax.random.normal(keys[0], (1, 6, 16)).astype(dtype)
  head_vd = jax.random.normal(keys[1], (24, 16))
  slope_acw = jax.random.normal(keys[2], (1, 6, 24))
  loss = lambda hidden, weight: (head.loss_logits(weight, config)(hidden) * slope_acw).sum()
  plain = lambda hidden, weight: (
    jnp.einsum("acd,vd->acv", hidden.astype(jnp.float32), weight.astype(dtype).astype(jnp.float32))
    * slope_acw
  ).sum()
  return loss, plain, (hidden_acd, head_vd)


@pytest.mark.parametrize("attention", ["xla", "cpu"])
@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_gradients_equal_those_of_a_plain_product(dtype, rtol, attention):
  loss, plain, inputs = loss_and_inputs(dtype, attention)
  value, grads = jax.value_and_grad(loss, (0, 1))(*inputs)
  wanted, wanted_grads = jax.value_and_grad(plain, (0, 1))(*inputs)
  np.testing.assert_allclose(value, wanted, rtol=1e-4)  # the logits are float32 in both types
  for found, expected in zip(grads, wanted_grads):
    assert found.dtype == expected.dtype
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(
      found.astype(jnp.float32), expected.astype(jnp.float32), rtol=0, atol=rtol * scale
    )


def test_no_product_of_a_bfloat16_policy_has_float32_factors():
  """GPUs multiply those at half the rate."""
  loss, _, inputs = loss_and_inputs("bfloat16", "xla")
  hlo = jax.jit(jax.grad(loss, (0, 1))).lower(*inputs).as_text()
  products = [line for line in hlo.splitlines() if "dot_general" in line]
  assert len(products) == 2  # the value itself is not returned
  assert not any("xf32>, tensor" in line for line in products), products
