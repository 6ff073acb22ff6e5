"""The output head in the loss: logits of one tile of tokens at a time, and their gradients."""

import functools

import jax
import jax.numpy as jnp

from srl_jax.policy import sharding


def loss_logits(head_vd, config):
  """A function hidden_acd -> logits_acw (float32), which the loss calls once for each tile.

  The vocabulary is sharded over fsdp too (letters a, w: sharding.ACT_AXES), so that no device
  holds the whole head or its whole gradient. That gradient is summed over all tiles in the head's
  type. Where w is longer than the vocabulary the spare logits are -1e30.
  """
  # The barrier: a scan must not close over a weight itself where gradients are added to refs (JAX
  # 0.10 then confuses the scan's arguments in the backward pass).
  head_wd = jax.lax.optimization_barrier(sharding.shard_head_by_vocab(head_vd))
  # XLA:CPU multiplies a transposed head faster; elsewhere the transpose would be a copy.
  letters, head = ("dw", head_wd.T) if config.on_cpu else ("wd", head_wd)
  cast = jax.lax.stop_gradient(head.astype(config.dtype))
  # A logit of -1e30 has probability 0 and no gradient.
  size, w = config.vocab_size, len(head_wd)

  def logits_of(hidden_acd):
    logits_acw = _product(f"acd,{letters}->acw", hidden_acd, in_type(head, cast))
    return logits_acw if w == size else jnp.where(jnp.arange(w) < size, logits_acw, -1e30)

  return logits_of


@jax.custom_vjp
def in_type(master, cast):
  """Returns `cast`, which is `master` in the compute type; the gradient is master's, in its type.

  The gradients of many uses are thus summed in float32, and the cast is computed once.
  """
  del master
  return cast


in_type.defvjp(
  lambda master, cast: (cast, jnp.zeros((), master.dtype)),
  lambda zero, g: (g.astype(zero.dtype), jnp.zeros_like(g)),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(letters, hidden_acd, weight):
  """The einsum in float32, whose gradients are products in the compute type.

  JAX would multiply the float32 gradient of the logits as it is, for which GPUs take TF32, at half
  the rate of bfloat16. Other trainers round this gradient to bfloat16 too.
  """
  return sharding.einsum(letters, hidden_acd, weight, jnp.float32)


def _product_fwd(letters, hidden_acd, weight):
  return _product(letters, hidden_acd, weight), (hidden_acd, weight)


def _product_bwd(letters, operands, grad_acw):
  hidden_acd, weight = operands
  (letters_h, letters_w), letters_out = letters.split("->")[0].split(","), letters.split("->")[1]
  grad_acw = grad_acw.astype(weight.dtype)
  of_hidden = f"{letters_out},{letters_w}->{letters_h}"
  # The activation is on the left: see cpu.einsum.
  of_weight = f"{letters_h},{letters_out}->{letters_w}"
  return (
    sharding.einsum_like(hidden_acd, of_hidden, grad_acw, weight),
    sharding.einsum_like(weight, of_weight, hidden_acd, grad_acw),
  )


_product.defvjp(_product_fwd, _product_bwd)
