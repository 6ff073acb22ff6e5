"""Our weights as the tensors of a Hugging Face checkpoint: names, shapes, layouts.

One table, HF_WEIGHTS, maps our weights to the tensors. Loading (weights.py) reads it forwards;
saving (`hf_tensors`) and the transfer to vLLM servers (`hf_batches`) read it backwards.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srl_jax.policy.model import WEIGHT_LETTERS, ModelConfig, Qwen2, weight_letters

# Our weight -> its Hugging Face name and dimensions in our letters; "nh,d" is a matrix [n * h, d].
# Hugging Face keeps [out, in] matrices, one for each layer; ours are stacked along l.
HF_WEIGHTS = {
  "embed_tokens": ("model.embed_tokens.weight", "v,d"),
  "layers.input_layernorm": ("model.layers.{}.input_layernorm.weight", "d"),
  "layers.q_proj": ("model.layers.{}.self_attn.q_proj.weight", "nh,d"),
  "layers.q_bias": ("model.layers.{}.self_attn.q_proj.bias", "nh"),
  "layers.k_proj": ("model.layers.{}.self_attn.k_proj.weight", "kh,d"),
  "layers.k_bias": ("model.layers.{}.self_attn.k_proj.bias", "kh"),
  "layers.v_proj": ("model.layers.{}.self_attn.v_proj.weight", "kh,d"),
  "layers.v_bias": ("model.layers.{}.self_attn.v_proj.bias", "kh"),
  "layers.q_norm": ("model.layers.{}.self_attn.q_norm.weight", "h"),
  "layers.k_norm": ("model.layers.{}.self_attn.k_norm.weight", "h"),
  "layers.o_proj": ("model.layers.{}.self_attn.o_proj.weight", "d,nh"),
  "layers.post_attention_layernorm": ("model.layers.{}.post_attention_layernorm.weight", "d"),
  "layers.gate_proj": ("model.layers.{}.mlp.gate_proj.weight", "f,d"),
  "layers.up_proj": ("model.layers.{}.mlp.up_proj.weight", "f,d"),
  "layers.down_proj": ("model.layers.{}.mlp.down_proj.weight", "d,f"),
  "norm": ("model.norm.weight", "d"),
  "lm_head": ("lm_head.weight", "v,d"),
}


def hf_tensors(config: ModelConfig, model: Qwen2, dtype=None) -> Iterator[tuple[str, jax.Array]]:
  """The model's weights under their Hugging Face names and in their shapes, one at a time.

  Yields (name, array), in the order of the network; the array is replicated over the model's mesh,
  in `dtype` (by default the weight's type). With several processes all must iterate.
  """
  params = params_of(model)
  for hf_name, (name, layer, _) in shapes_of(config).items():
    weight = params[name][...]
    yield hf_name, to_hf(weight, layer or 0, name, jnp.dtype(dtype or weight.dtype))


class Stack(NamedTuple):
  """A weight under Hugging Face's names.

  Fields: names; array, the tensor of that name, or, if `by_layer`, one tensor for each name.
  """

  names: tuple[str, ...]
  array: jax.Array
  by_layer: bool


def hf_batches(
  config: ModelConfig, model: Qwen2, dtype, max_bytes: int
) -> Iterator[tuple[Stack, ...]]:
  """The tensors of hf_tensors in batches; one program makes a batch.

  The largest tensors, embedding and head, are first, so that what follows can be divided evenly.
  All batches of layers have the same shapes, so they share one program.

  Args:
    config, model: as for save_hf. With several processes all must iterate.
    dtype: type of the tensors.
    max_bytes: size of a batch, except that one layer, the embedding and the head are not divided.

  Yields tuples of Stack, whose arrays are replicated over the model's mesh.
  """
  dtype, params = jnp.dtype(dtype), {}
  for name, param in params_of(model).items():
    params[name] = param[...]
  stacked = {name: params.pop(name) for name in list(params) if name.startswith("layers.")}
  for name, weight in sorted(params.items(), key=lambda item: -item[1].size):
    # Outside the layers our layout is Hugging Face's, so there may be nothing to do.
    if weight.dtype != dtype or not weight.sharding.is_fully_replicated:
      weight = export({name: weight}, 0, 1, dtype)[name]
    yield (Stack((HF_WEIGHTS[name][0],), weight, by_layer=False),)
  count = _layers_of_a_batch(config, dtype.itemsize, max_bytes)
  for first in range(0, config.num_hidden_layers, count):
    stacks = []
    for name, array in export(stacked, first, count, dtype).items():
      names = (HF_WEIGHTS[name][0].format(layer) for layer in range(first, first + count))
      stacks.append(Stack(tuple(names), array, by_layer=True))
    yield tuple(stacks)


def _layers_of_a_batch(config, itemsize, max_bytes):
  """The most layers that divide the model's evenly and have at most max_bytes; at least one."""
  total = config.num_hidden_layers
  sizes = [math.prod(shape) for _, layer, shape in shapes_of(config).values() if layer == 0]
  fits = max(1, max_bytes // (itemsize * sum(sizes)))
  return max(count for count in range(1, total + 1) if total % count == 0 and count <= fits)


@functools.partial(jax.jit, static_argnames=("name", "dtype"))
def to_hf(weight, layer, name, dtype):
  """One Hugging Face tensor of our weight `name`, replicated, in `dtype`; layer is int32."""
  array = export({name: weight}, layer, 1, dtype)[name]
  return array[0] if letters_of(name)[0] == "l" else array


@functools.partial(jax.jit, static_argnames=("count", "dtype"))
def export(weights, first, count, dtype):
  """{name: the Hugging Face tensor}, replicated, in `dtype`.

  Args:
    weights: {name of HF_WEIGHTS: array}.
    first, count: of a weight that is stacked along l, the layers of which tensors are returned,
      stacked too; first is int32.
    dtype: a numpy type.
  """
  return {name: _export(weight, first, count, name, dtype) for name, weight in weights.items()}


def _export(weight, first, count, name, dtype):
  shape, order = _layout(name, weight.shape)
  if letters_of(name)[0] == "l":
    weight = jax.lax.dynamic_slice_in_dim(weight, first, count)
  # The cast precedes the all-gather, so that fewer bytes are communicated.
  weight = weight.astype(dtype)
  mesh = jax.typeof(weight).sharding.mesh
  if not mesh.empty:
    weight = jax.reshard(weight, NamedSharding(mesh, P()))
  return weight.reshape(shape).transpose(order)


def _layout(name, shape):
  """(matrix, order): our weight.reshape(matrix).transpose(order) is the Hugging Face tensor.

  `shape` is our weight's; the number of layers is -1 in `matrix`.
  """
  letters, dims = letters_of(name), HF_WEIGHTS[name][1].split(",")
  # E.g. q_proj, ldnh and "nh,d": [l, d, n * h] -> [l, n * h, d].
  ours = sorted(dims, key=letters.index)
  size = dict(zip(letters, shape))
  matrix = [math.prod(size[letter] for letter in dim) for dim in ours]
  order = [ours.index(dim) for dim in dims]
  if letters[0] == "l":
    return [-1, *matrix], [0, *(1 + i for i in order)]
  return matrix, order


def letters_of(name):
  """Our letters of the weight `name` of HF_WEIGHTS, l included."""
  first, _, inner = name.partition(".")
  return "l" + WEIGHT_LETTERS[first][inner] if inner else WEIGHT_LETTERS[first]


def params_of(model):
  """{name of HF_WEIGHTS: nnx.Param} of the weights that the model has."""
  params = {}
  for name in _names(model.config):
    first, _, inner = name.partition(".")
    holder = getattr(model, first)
    params[name] = getattr(holder, inner) if inner else holder
  return params


def _names(config):
  """The names of HF_WEIGHTS that a model of `config` has."""
  letters = weight_letters(config)
  inner = [f"layers.{name}" for name in letters["layers"]]
  return [name for name in HF_WEIGHTS if name in letters or name in inner]


def shapes_of(config):
  """{Hugging Face name: (our name, layer or None, Hugging Face shape)} in the network's order."""
  sizes, shapes, names = config.sizes(), {}, _names(config)

  def add(name, layer=None):
    hf_name, dims = HF_WEIGHTS[name]
    shape = tuple(math.prod(sizes[letter] for letter in dim) for dim in dims.split(","))
    shapes[hf_name.format(layer)] = (name, layer, shape)

  # In the order in which hf_tensors yields tensors and _plan_files divides them among files.
  add("embed_tokens")
  for layer in range(config.num_hidden_layers):
    for name in names:
      if name.startswith("layers."):
        add(name, layer)
  add("norm")
  if "lm_head" in names:
    add("lm_head")
  return shapes
