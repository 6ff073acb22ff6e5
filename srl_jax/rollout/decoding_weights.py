"""The weights as the built-in sampler decodes with them, separate arrays for each layer."""

import functools

import jax
from flax import nnx

from srl_jax.policy.lora import Lora
from srl_jax.policy.model import Qwen2, weight_letters
from srl_jax.policy.sharding import all_gather_weight


@jax.jit
def decoding_copy(model: Qwen2):
  """(model without layers, list of layers) in the compute type.

  The copy is all-gathered along fsdp, once per version of the weights instead of once per token.
  Each layer's weights are separate arrays, so that decoding slices no stacked array.
  """
  dtype = model.config.dtype
  layers, letters_of = model.layers, weight_letters(model.config)
  del model.layers  # jit passes a copy of the module, so the caller's model keeps them
  for name, letters in letters_of.pop("layers").items():
    # `weight[...] = ` would cast back to the master's type.
    weight = getattr(layers, name)
    weight.set_value(all_gather_weight(weight[...], "l" + letters, dtype))
  for name, letters in letters_of.items():
    weight = getattr(model, name)
    weight.set_value(all_gather_weight(weight[...], letters, dtype))
  count = model.config.num_hidden_layers
  return model, [jax.tree.map(lambda w: w[i], layers) for i in range(count)]  # noqa: B023


def of_frozen(model: Qwen2):
  """decoding_copy; of unstacked weights (policy.lora.unstack) the arrays themselves."""
  return layers_of(model) if is_unstacked(model) else decoding_copy(model)


def is_unstacked(model: Qwen2) -> bool:
  return isinstance(model.layers, nnx.List)


def layers_of(model: Qwen2):
  """(model without layers, list of layers) of unstacked weights."""
  layers = list(model.layers)
  model = jax.tree.map(lambda array: array, model)
  del model.layers
  return model, layers


@functools.partial(jax.jit, static_argnames="dtype")
def decoding_adapters(lora: Lora, dtype: str) -> list[Lora]:
  """The adapters of each layer in the compute type, all-gathered along fsdp."""
  layers = lora.by_layer()
  for layer in layers:
    for _, letters, param in layer.params():
      param.set_value(all_gather_weight(param[...], letters, dtype))
  return layers
