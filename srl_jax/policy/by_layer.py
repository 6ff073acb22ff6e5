"""The weights as the micro-batches of one optimiser step use them on NVIDIA GPUs: by layer, cast.

A scan over stacked layers copies every layer's weights out of the stacked arrays, casts them again
in each micro-batch, and copies what the layer keeps for the backward pass, and its gradients, into
and out of stacked arrays. With an array for each layer, in the compute type, the loop over layers
is unrolled and none of these copies exist. The price is the cast copy, 2 bytes a weight of a
device's shard, and a program that takes two to three times as long to compile (benchmarks/gpu.md);
batch.remat "full" does without it.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from srl_jax.policy.model import Qwen2


def cast(model: Qwen2) -> Qwen2:
  """The policy with a list of layers in its compute type; the other arrays are the same ones.

  The embedding and the output head keep their type, because gradients are summed in them.
  """
  copied = jax.tree.map(lambda array: array, model)
  copied.layers = cast_layers(model.layers, dtype=model.config.dtype)
  return copied


@functools.partial(jax.jit, static_argnames="dtype")
def cast_layers(stacked, dtype: str) -> nnx.List:
  """Each layer of the stacked ones, in `dtype`."""
  leaves, tree = jax.tree.flatten(stacked)
  columns = [[leaf[i].astype(dtype) for i in range(len(leaf))] for leaf in leaves]
  return nnx.List([tree.unflatten(row) for row in zip(*columns)])


def stack(grads):
  """The gradients of what `cast` returned, with the layers stacked; others as they are."""
  if not isinstance(grads, Qwen2) or not isinstance(grads.layers, nnx.List):
    return grads
  copied = jax.tree.map(lambda array: array, grads)
  copied.layers = jax.tree.map(lambda *layers: jnp.stack(layers), *grads.layers)
  return copied
