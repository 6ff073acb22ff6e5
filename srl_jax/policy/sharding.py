"""Where arrays live: one mesh of three axes, and two tables from shape letters to mesh axes.

Every array of the policy is named by its letters (`x_btd`, `q_proj` is `dnh`); a letter's mesh axis
stands in one of the two tables, so a layout is written by writing the letters. The mesh is
"explicit" (jax docs, "Explicit sharding"): layouts are part of an array's type, and an operation
that would need communication nobody asked for is an error when it is traced, not a slow step.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srl_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# Weights at rest: the model dimension is cut over fsdp, heads, mlp and vocabulary over tensor.
PARAM_AXES = {"d": "fsdp", "n": "tensor", "k": "tensor", "f": "tensor", "v": "tensor"}
DIMENSIONS = {  # config.json's names of those letters, for error messages
  "d": "hidden_size",
  "n": "num_attention_heads",
  "k": "num_key_value_heads",
  "f": "intermediate_size",
  "v": "vocab_size",
}
# Activations: the batch over data and fsdp together (fsdp: data parallelism whose weights are cut).
# Where the vocabulary is cut over fsdp too (w), the batch is cut over data alone (a).
ACT_AXES = {"b": ("data", "fsdp"), "n": "tensor", "k": "tensor", "f": "tensor", "v": "tensor"}
ACT_AXES |= {"a": "data", "w": ("tensor", "fsdp")}


def parse_mesh(spec: str) -> dict[str, int]:
  """Sizes of the mesh axes in the order of AXES, from "data=1,fsdp=8,tensor=1".

  An axis that is left out has size 1. Raises UserError for an unknown axis or a size below 1.
  """
  sizes = {}
  for item in filter(None, (part.strip() for part in spec.split(","))):
    name, _, value = item.partition("=")
    if name in sizes:
      raise UserError(f"mesh: {spec!r} gives {name} twice")
    if name not in AXES or not value.isdigit() or int(value) < 1:
      raise UserError(
        f"mesh: {item!r} in {spec!r} is not AXIS=SIZE with an axis of {', '.join(AXES)} and a "
        "size >= 1; write for example data=1,fsdp=8,tensor=1"
      )
    sizes[name] = int(value)
  return {axis: sizes.get(axis, 1) for axis in AXES}


def make_mesh(spec: str, devices=None) -> jax.sharding.Mesh:
  """Explicit mesh of the axes data, fsdp, tensor over the first devices.

  Args:
    spec: "data=1,fsdp=8,tensor=1".
    devices: defaults to all of jax.devices(); with one process, spare devices are left idle.

  Raises UserError when there are fewer devices than the mesh needs.
  """
  shape = tuple(parse_mesh(spec).values())
  devices = list(jax.devices() if devices is None else devices)
  needed = int(np.prod(shape))
  if needed > len(devices) or (jax.process_count() > 1 and needed != len(devices)):
    raise UserError(
      f"mesh: {spec!r} needs {needed} devices, this run has {len(devices)} "
      f"({devices[0].platform}); set config.mesh to sizes whose product is {len(devices)}"
    )
  kinds = (jax.sharding.AxisType.Explicit,) * len(AXES)
  try:
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices[:needed])
  except NotImplementedError as error:  # of a TPU's torus
    raise UserError(
      f"mesh: {spec!r} cannot be laid on these chips ({error}); choose sizes that are products of "
      "the torus's own, such as data=16,fsdp=16 on v6e-256"
    ) from error


def check_mesh(spec: str, sizes: dict[str, int]) -> None:
  """Raises UserError unless each axis divides every dimension of the weights that it cuts.

  Args:
    spec: as make_mesh.
    sizes: length of each shape letter, ModelConfig.sizes().
  """
  for axis, count in parse_mesh(spec).items():
    cut = [letter for letter in PARAM_AXES if PARAM_AXES[letter] == axis]
    odd = [f"{DIMENSIONS[letter]} {sizes[letter]}" for letter in cut if sizes[letter] % count]
    if odd:
      most = math.gcd(*(sizes[letter] for letter in cut))
      legal = [n for n in range(1, most + 1) if most % n == 0]
      raise UserError(
        f"mesh: {axis}={count} does not divide the model's {' and '.join(odd)}; legal values of "
        f"{axis} are {', '.join(map(str, legal))}"
      )


def param_spec(letters: str) -> P:
  """Layout of a weight with these letters."""
  return P(*(PARAM_AXES.get(letter) for letter in letters))


def act_spec(letters: str) -> P:
  """Layout of an activation with these letters."""
  return P(*(ACT_AXES.get(letter) for letter in letters))


def has_mesh() -> bool:
  """Whether a mesh is set (jax.set_mesh); without one everything runs on the default device."""
  return not jax.sharding.get_abstract_mesh().empty


def keep_mesh(function):
  """`function` for another thread, with the mesh that is set in this one."""
  mesh = jax.sharding.get_mesh()

  def call(*args, **kwargs):
    with jax.set_mesh(mesh):
      return function(*args, **kwargs)

  return function if mesh.empty else call


def shards(letter: str, mesh=None) -> int:
  """Devices that this letter of an activation is cut over, on `mesh` or the set one; 1 without."""
  sizes = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
  axes = ACT_AXES[letter]
  return math.prod(sizes.get(axis, 1) for axis in ([axes] if isinstance(axes, str) else axes))


def platform(mesh=None) -> str:
  """The platform of the mesh's devices ("cpu", "gpu", "tpu"), or of the default device."""
  mesh = jax.sharding.get_mesh() if mesh is None else mesh
  return jax.default_backend() if mesh.empty else mesh.devices.flat[0].platform


def reshard(x, spec: P):
  """`x` in the layout `spec`; `x` itself where no mesh is set."""
  return jax.reshard(x, spec) if has_mesh() else x


def gather(weight, letters: str, dtype):
  """A weight in the compute type, whole along fsdp and still cut along tensor.

  The cast comes first, so that the gather moves bfloat16 and not the float32 masters. A matrix is
  "reduced" over the batch's axes: its gradient stays each device's own part until it is cut along
  fsdp again, which is one reduce-scatter, after a loop that used the matrix and not in each round.
  """
  axes = (
    None if PARAM_AXES.get(letter) == "fsdp" else PARAM_AXES.get(letter) for letter in letters
  )
  matrix = "d" in letters and letters != "d"
  reduced = frozenset(ACT_AXES["b"]) if matrix else frozenset()
  return reshard(weight.astype(dtype), P(*axes, reduced=reduced))


def exchange(head_vd):
  """head_wd, the output head cut over fsdp along the vocabulary and no longer along d.

  w is v rounded up to a multiple of the devices that share it; the rows beyond v are 0.
  """
  spare = -len(head_vd) % shards("w")
  if spare:
    head_vd = jnp.pad(reshard(head_vd, P(None, "fsdp")), ((0, spare), (0, 0)))
  return reshard(head_vd, P(*act_spec("wd"), reduced={"data"}))


def spread(x_bcd):
  """x_acd, activations whole along fsdp, for a matrix that is cut over fsdp and tensor.

  Their gradient comes back as one reduce-scatter.
  """
  return reshard(x_bcd, P(*act_spec("acd"), reduced={"fsdp", "tensor"}))


def lookup(table_vd, tokens_bt, dtype):
  """x_btd, the table's rows for the tokens (int32), in the compute type.

  Each device looks up the tokens of its whole fsdp group in its own columns, and the group
  exchanges what it found: the table, by far the largest matrix, is never gathered. Its gradient is
  added up in the table's own type, already cut.
  """
  if not has_mesh():
    return table_vd[tokens_bt].astype(dtype)
  if "fsdp" not in jax.typeof(table_vd).sharding.spec.partitions:  # gathered before
    return reshard(table_vd, P()).at[tokens_bt].get(out_sharding=act_spec("btd")).astype(dtype)
  # Whole along tensor: XLA gathers all of a table that is cut in two directions.
  columns_vd = reshard(table_vd, P(None, "fsdp", reduced={"data"}))
  tokens_at = reshard(tokens_bt, act_spec("at"))
  x_atd = columns_vd.at[tokens_at].get(out_sharding=P("data", None, "fsdp"))
  return reshard(x_atd.astype(dtype), act_spec("btd"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum(letters: str, a, b, dtype=None):
  """jnp.einsum of an activation and a gathered weight; the result's letters give its layout."""
  out = act_spec(letters.split("->")[1]) if has_mesh() else None
  return _in_order(letters, a, b, preferred_element_type=dtype, out_sharding=out)


def _in_order(letters: str, *operands, **how):
  """jnp.einsum that sums over a head's letters as they lie in memory: it takes them by the
  alphabet, and for bthn and hnd XLA would copy what lies as btnh and nhd.
  """
  return jnp.einsum(letters.replace("h", "z"), *operands, **how)


def _einsum_back(letters, dtype, operands, grad):
  """JAX's own rule but for one thing: of the two factors of the weight's gradient the narrower one
  stands on the left. XLA transposes that one on CPUs, element by element with what it is computed
  from; with the wider one there, a third of an update went into it.
  """
  del dtype
  a, b = operands
  (of_a, of_b), of_out = letters.split("->")[0].split(","), letters.split("->")[1]

  def product(factors, x, of_x, order):
    """The factors' einsum as x's gradient, its letters in another order."""
    spec = jax.typeof(x).sharding.spec
    axes = dict(zip(of_x, spec.partitions))
    out = P(*map(axes.get, order), unreduced=spec.reduced) if has_mesh() else None
    names, arrays = zip(*factors)
    names = f"{','.join(names)}->{order}"
    return _in_order(names, *arrays, preferred_element_type=x.dtype, out_sharding=out)

  grad_a = product([(of_out, grad), (of_b, b)], a, of_a, of_a)
  factors = sorted([(of_a, a), (of_out, grad)], key=lambda factor: factor[1].size)
  order = [letter for name, _ in factors for letter in name if letter in of_b]
  grad_b = product(factors, b, of_b, "".join(order))
  if "".join(order) != of_b:
    # The barrier keeps XLA from turning the factors round again to spare the transpose.
    grad_b = jax.lax.optimization_barrier(grad_b).transpose([*map(order.index, of_b)])
  return grad_a, grad_b


einsum.defvjp(lambda letters, a, b, dtype: (einsum(letters, a, b, dtype), (a, b)), _einsum_back)


def put(x, letters: str, mesh=None):
  """Host array -> device array in the activation layout of `letters` on `mesh`, or the set one."""
  mesh = mesh if mesh is not None else jax.sharding.get_mesh()
  if mesh is None or mesh.empty:
    return jnp.asarray(x)
  # Every process gives its own devices their parts.
  return jax.make_array_from_callback(
    x.shape, NamedSharding(mesh, act_spec(letters)), x.__getitem__
  )


def on_host(x) -> np.ndarray:
  """The whole array on the host.

  With several processes all must ask for it, unless it lies whole on every device.
  """
  here = x.is_fully_addressable or x.is_fully_replicated
  return np.asarray(x if here else jax.reshard(x, P()))
