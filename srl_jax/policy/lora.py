"""LoRA: low-rank matrices beside frozen weights (Hu et al. 2021, arXiv 2106.09685), as peft has it.

Beside a matrix W of a layer, x W becomes x W + (alpha / rank) (x A) B. Only A and B are trained,
in float32; W keeps the compute type and is never added to them while a run trains or samples, so
that a small change is not rounded away in bfloat16.

A policy with adapters is a Qwen2 whose attribute `lora` is a Lora. `split` and `join` take it apart
into what is trained and what is frozen; for a policy without adapters everything is trained.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from srl_jax.policy import model as policy_model
from srl_jax.policy.model import WEIGHT_LETTERS, ModelConfig, Qwen2, weight_letters
from srl_jax.policy.sharding import all_gather_weight, has_mesh, param_spec, reshard

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
# Values of lora.targets.
TARGETS = {"attention": ATTENTION, "mlp": MLP, "all": ATTENTION + MLP}


@dataclasses.dataclass(frozen=True)
class Shape:
  """The adapters of a policy.

  Fields: rank, the length of the letter j; alpha, where alpha / rank scales what they add; targets,
  the names of the matrices that have one.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]

  @property
  def scale(self) -> float:
    """The factor of what the adapters add."""
    return self.alpha / self.rank


def letters(name: str) -> tuple[str, str]:
  """The shape letters of A and B beside the matrix `name` of a layer, such as "dj" and "jnh".

  A has the inputs of the matrix and B its outputs, so each is sharded as the matrix is there, and
  all three multiply without a further collective. The rank is not sharded.
  """
  both = WEIGHT_LETTERS["layers"][name]
  inputs = both[:-1] if both[-1] == "d" else both[:1]
  return inputs + "j", "j" + both[len(inputs) :]


class Lora(nnx.Module):
  """Adapters: NAME_a and NAME_b of each target, stacked along l; those of a layer have no l.

  A is uniform between -1/sqrt(inputs) and 1/sqrt(inputs) and B is 0, as peft initialises them, so
  that a policy with new adapters is the policy without.
  """

  def __init__(self, shape: Shape, config: ModelConfig, rngs: nnx.Rngs):
    self.shape = shape
    sizes = config.sizes() | {"j": shape.rank}
    for name in shape.targets:
      size_a, size_b = ([sizes[x] for x in "l" + part] for part in letters(name))
      limit = functools.reduce(lambda product, size: product * size, size_a[1:-1], 1) ** -0.5
      a = jax.random.uniform(rngs.params(), size_a, minval=-limit, maxval=limit)
      setattr(self, f"{name}_a", nnx.Param(a))
      setattr(self, f"{name}_b", nnx.Param(jnp.zeros(size_b)))

  def params(self):
    """Yields (name of the attribute, its letters without l, nnx.Param)."""
    for name in self.shape.targets:
      for suffix, part in zip(("_a", "_b"), letters(name)):
        yield name + suffix, part, getattr(self, name + suffix)

  def delta(self, einsum, equation: str, x, name: str):
    """What the adapter of the matrix `name` adds to einsum(equation, x, matrix); of one layer.

    Args: einsum, that of ModelConfig; x, in the compute type, as the result.
    """
    given, result = equation.split(",")[0], equation.split("->")[1]
    part_a, part_b = letters(name)
    a = all_gather_weight(getattr(self, f"{name}_a")[...], part_a, x.dtype)
    b = all_gather_weight(getattr(self, f"{name}_b")[...], part_b, x.dtype)
    x_btj = einsum(f"{given},{part_a}->{given[:2]}j", x, a)
    return einsum(f"{given[:2]}j,{part_b}->{result}", x_btj * self.shape.scale, b)

  def onto(self, layers):
    """The layers of a Qwen2, stacked or unstacked, each with its adapters as attribute `lora`."""
    if isinstance(layers, nnx.List):
      return nnx.List([with_lora(*pair) for pair in zip(layers, self.by_layer())])
    return with_lora(layers, self)

  def by_layer(self) -> list["Lora"]:
    """The adapters of each layer."""
    leaves, tree = jax.tree.flatten(self)
    count = len(leaves[0])
    columns = []
    for leaf in leaves:
      # One split, whose gradient is one concatenation; slices would each have one as large as leaf.
      parts = jax.lax.split(leaf, (1,) * count)
      columns.append([jax.lax.squeeze(part, (0,)) for part in parts])
    return [tree.unflatten(row) for row in zip(*columns)]


def with_lora(holder, lora: Lora):
  """A copy of a module (its arrays are shared) with the attribute `lora`."""
  copied = _copy(holder)
  copied.lora = lora
  return copied


def _copy(module):
  return jax.tree.map(lambda array: array, module)


def split(model: Qwen2) -> tuple[Qwen2 | Lora, Qwen2 | None]:
  """(what is trained, what is frozen): of a policy without adapters (the policy, None)."""
  if model.lora is None:
    return model, None
  frozen = _copy(model)
  del frozen.lora
  return model.lora, frozen


def join(trained: Qwen2 | Lora, frozen: Qwen2 | None) -> Qwen2:
  """The policy that `split` took apart."""
  return trained if frozen is None else with_lora(frozen, trained)


# ---------------------------------------------------------------------------------- making


def init(shape: Shape, config: ModelConfig, seed: int) -> Lora:
  """New adapters, the same on every mesh up to rounding."""
  make = jax.jit(lambda key: shard(Lora(shape, config, nnx.Rngs(key))))
  return make(jax.random.fold_in(jax.random.key(seed), shape.rank))


def shard(lora: Lora) -> Lora:
  """The adapters sharded as `letters` states on the mesh that is set."""
  for _, part, param in lora.params():
    param.set_value(reshard(param[...], param_spec("l" + part)))
  return lora


def abstract(shape: Shape, config: ModelConfig) -> Lora:
  """Adapters with ShapeDtypeStruct in place of their arrays, sharded if a mesh is set."""
  return jax.eval_shape(lambda: shard(Lora(shape, config, nnx.Rngs(0))))


def abstract_base(config: ModelConfig, unstacked: bool) -> Qwen2:
  """The frozen weights, as `abstract`: in the compute type, and as `unstack` leaves them."""
  base = policy_model.abstract(config)
  base = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.dtype(config.dtype)), base)
  return jax.eval_shape(unstack, base) if unstacked else base


def unstack(model: Qwen2) -> Qwen2:
  """The policy with a list of layers, which the built-in sampler uses as they are.

  Decoding reads each layer's weights as separate arrays; of stacked ones it would need a copy.
  `model` loses its stacked weights one after the other, so that there is never a second copy.
  """
  stacked = model.layers
  layers = [_copy(stacked) for _ in range(model.config.num_hidden_layers)]
  for name in weight_letters(model.config)["layers"]:
    parts = _parts(getattr(stacked, name)[...])
    delattr(stacked, name)
    for layer, part in zip(layers, parts):
      getattr(layer, name).set_value(part)
  model.layers = nnx.List(layers)
  return model


@jax.jit
def _parts(weight):
  return [weight[i] for i in range(len(weight))]


# ---------------------------------------------------------------------------------- merging


def merge(model: Qwen2, dtype) -> Qwen2:
  """The policy without adapters, with what they add in its matrices, in `dtype`.

  The sums are float32. Its layers must be stacked.
  """
  lora, merged = split(model)
  if merged is None:
    return model
  for name in lora.shape.targets:
    weight = getattr(merged.layers, name)
    pair = getattr(lora, f"{name}_a")[...], getattr(lora, f"{name}_b")[...]
    weight.set_value(_merged(weight[...], *pair, lora.shape.scale, name, jnp.dtype(dtype)))
  return jax.tree.map(lambda weight: weight.astype(dtype), merged)


@functools.partial(jax.jit, static_argnames=("scale", "name", "dtype"))
def _merged(weight, a, b, scale, name, dtype):
  both = "l" + WEIGHT_LETTERS["layers"][name]
  part_a, part_b = ("l" + part for part in letters(name))
  out = param_spec(both) if has_mesh() else None
  precise = dict(precision="highest", out_sharding=out)
  change = jnp.einsum(f"{part_a},{part_b}->{both}", a, b, **precise)
  return (weight.astype(jnp.float32) + scale * change).astype(dtype)
