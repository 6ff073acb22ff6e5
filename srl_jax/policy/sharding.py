"""Where arrays live: one mesh of three axes, and two tables from shape letters to mesh axes.

Every array of the policy is named by its letters (`x_btd`, `q_proj` is `dnh`). The two tables give
the mesh axis of each letter, one table for weights and one for activations, so the letters of an
array determine its sharding. The mesh is "explicit" (jax docs, "Explicit sharding"): shardings are
part of an array's type, and an operation that would need communication the code does not request is
an error when it is traced, not a slow step.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srl_jax import hosts
from srl_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# Weights at rest: the model dimension is sharded over fsdp; heads, mlp and vocabulary over tensor.
PARAM_AXES = {"d": "fsdp", "n": "tensor", "k": "tensor", "f": "tensor", "v": "tensor"}
DIMENSIONS = {  # config.json's names of those letters, for error messages
  "d": "hidden_size",
  "n": "num_attention_heads",
  "k": "num_key_value_heads",
  "f": "intermediate_size",
  "v": "vocab_size",
}
# Activations: the batch is sharded over data and fsdp together (fsdp is data parallelism with
# sharded weights). Where the vocabulary is sharded over fsdp too (letter w), the batch is sharded
# over data alone (letter a).
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
  # In the order of AXES, whatever the order in `spec`.
  return {axis: sizes.get(axis, 1) for axis in AXES}


def make_mesh(spec: str, devices=None) -> jax.sharding.Mesh:
  """Explicit mesh of the axes data, fsdp, tensor over the first devices.

  Args:
    spec: "data=1,fsdp=8,tensor=1".
    devices: defaults to all of jax.devices(); a single process may leave some of them idle.

  Raises UserError when there are fewer devices than the mesh needs.
  """
  shape = tuple(parse_mesh(spec).values())
  devices = list(hosts.devices() if devices is None else devices)
  # Each process must own a part of the mesh, so only a single process may leave devices idle.
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
      f"mesh: {spec!r} does not map onto these chips ({error}); choose sizes that are products of "
      "the torus's own, such as data=16,fsdp=16 on v6e-256"
    ) from error


def fitting_mesh(sizes: dict[str, int]) -> str:
  """fsdp over as many of all devices as divide every dimension that fsdp shards."""
  most = math.gcd(*(sizes[letter] for letter in PARAM_AXES if PARAM_AXES[letter] == "fsdp"))
  count = len(hosts.devices())
  return f"fsdp={max(n for n in range(1, count + 1) if most % n == 0)}"


def check_mesh(spec: str, sizes: dict[str, int]) -> None:
  """Raises UserError unless each axis divides every dimension of the weights that it shards.

  Args:
    spec: as make_mesh.
    sizes: length of each shape letter, ModelConfig.sizes().
  """
  for axis, count in parse_mesh(spec).items():
    cut = [letter for letter in PARAM_AXES if PARAM_AXES[letter] == axis]
    odd = [f"{DIMENSIONS[letter]} {sizes[letter]}" for letter in cut if sizes[letter] % count]
    if odd:
      # A legal size divides every dimension along this axis, so it divides their gcd.
      most = math.gcd(*(sizes[letter] for letter in cut))
      legal = [n for n in range(1, most + 1) if most % n == 0]
      raise UserError(
        f"mesh: {axis}={count} does not divide the model's {' and '.join(odd)}; legal values of "
        f"{axis} are {', '.join(map(str, legal))}"
      )


def param_spec(letters: str) -> P:
  """Sharding of a weight at rest with these letters."""
  return P(*(PARAM_AXES.get(letter) for letter in letters))


def act_spec(letters: str) -> P:
  """Sharding of an activation with these letters."""
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
  """Number of shards of this letter of an activation, on `mesh` or the one set; 1 without."""
  sizes = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
  axes = ACT_AXES[letter]
  return math.prod(sizes.get(axis, 1) for axis in ([axes] if isinstance(axes, str) else axes))


def platform(mesh=None) -> str:
  """The platform of the mesh's devices ("cpu", "gpu", "tpu"), or of the default device."""
  mesh = jax.sharding.get_mesh() if mesh is None else mesh
  return jax.default_backend() if mesh.empty else mesh.devices.flat[0].platform


def reshard(x, spec: P):
  """`x` with the sharding `spec`; `x` itself where no mesh is set."""
  return jax.reshard(x, spec) if has_mesh() else x


def all_gather_weight(weight, letters: str, dtype):
  """A weight in the compute type, all-gathered along fsdp and still sharded along tensor.

  The cast precedes the all-gather, so that bfloat16 is communicated, not float32. A matrix is
  "reduced" over the batch's axes: its gradient stays each device's partial sum until it is sharded
  along fsdp again. That is one reduce-scatter after a loop that uses the matrix, instead of one in
  each iteration.
  """
  # None where the weight was sharded along fsdp: that is the all-gather.
  axes = (
    None if PARAM_AXES.get(letter) == "fsdp" else PARAM_AXES.get(letter) for letter in letters
  )
  matrix = letters != "d" and not {"d", "j"}.isdisjoint(letters)
  reduced = frozenset(ACT_AXES["b"]) if matrix else frozenset()
  return reshard(weight.astype(dtype), P(*axes, reduced=reduced))


def shard_head_by_vocab(head_vd):
  """head_wd: the output head sharded over fsdp along the vocabulary and no longer along d.

  w is v rounded up to a multiple of the devices that share it; the rows beyond v are 0.
  """
  # -v % n is the distance from v to the next multiple of n.
  spare = -len(head_vd) % shards("w")
  if spare:
    head_vd = jnp.pad(reshard(head_vd, P(None, "fsdp")), ((0, spare), (0, 0)))
  return reshard(head_vd, P(*act_spec("wd"), reduced={"data"}))


def gather_batch(x_bcd):
  """x_acd: activations all-gathered along fsdp, for a matrix sharded over fsdp and tensor.

  The gradient is one reduce-scatter.
  """
  return reshard(x_bcd, P(*act_spec("acd"), reduced={"fsdp", "tensor"}))


def lookup(table_vd, tokens_bt, dtype):
  """x_btd: the table's rows for the tokens (int32), in the compute type.

  The table is by far the largest matrix and is never gathered: each device looks up the tokens of
  its whole fsdp group in its own columns, and an all-to-all moves the results. The gradient is
  summed in the table's type and stays sharded.
  """
  if not has_mesh():
    return table_vd[tokens_bt].astype(dtype)
  # The sampler's copy is all-gathered along fsdp already (rollout.slots.decoding_copy).
  if "fsdp" not in jax.typeof(table_vd).sharding.spec.partitions:
    return reshard(table_vd, P()).at[tokens_bt].get(out_sharding=act_spec("btd")).astype(dtype)
  # Replicated along tensor: XLA all-gathers a table that is sharded in both dimensions.
  columns_vd = reshard(table_vd, P(None, "fsdp", reduced={"data"}))
  # Letter a: all tokens of the fsdp group on each of its devices, one slice of columns (d) each.
  tokens_at = reshard(tokens_bt, act_spec("at"))
  x_atd = columns_vd.at[tokens_at].get(out_sharding=P("data", None, "fsdp"))
  return reshard(x_atd.astype(dtype), act_spec("btd"))


def einsum(letters: str, a, b, dtype=None):
  """jnp.einsum of an activation and a weight; the result's letters give its sharding."""
  out = act_spec(letters.split("->")[1]) if has_mesh() else None
  return jnp.einsum(letters, a, b, preferred_element_type=dtype, out_sharding=out)


def einsum_like(x, letters: str, *factors):
  """The einsum in the type and with the sharding of a gradient of x."""
  spec = jax.typeof(x).sharding.spec
  out = P(*spec.partitions, unreduced=spec.reduced) if has_mesh() else None
  return jnp.einsum(letters, *factors, preferred_element_type=x.dtype, out_sharding=out)


def on_mesh(tree):
  """The shapes of a tree with their shardings on the devices of the mesh that is set.

  What is made without running anything (jax.eval_shape) has shardings on a mesh of names, for which
  nothing can be compiled. Without a mesh the tree is returned as it is.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return tree

  def place(x):
    spec = x.sharding.spec if x.sharding is not None else P()
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type, sharding=sharding)

  return jax.tree.map(place, tree)


def put(x, letters: str, mesh=None):
  """Host array -> device array with the sharding of an activation, on `mesh` or the one set."""
  mesh = mesh if mesh is not None else jax.sharding.get_mesh()
  if mesh is None or mesh.empty:
    return jnp.asarray(x)
  # Each process copies only the shards of its own devices.
  return jax.make_array_from_callback(
    x.shape, NamedSharding(mesh, act_spec(letters)), x.__getitem__
  )


def row_processes(b: int) -> list[frozenset[int]]:
  """The processes that have each of b rows on their devices, with the mesh that is set.

  b is a multiple of shards("b"). A row is on several processes where the mesh's axis tensor extends
  over them.
  """
  return _row_processes(jax.sharding.get_mesh(), b)


@functools.lru_cache
def _row_processes(mesh, b: int) -> list[frozenset[int]]:
  if mesh.empty:
    return [frozenset({0})] * b
  processes = [set() for _ in range(b)]
  sharding = NamedSharding(mesh, act_spec("b"))
  for device, (part,) in sharding.devices_indices_map((b,)).items():
    for row in range(b)[part]:
      processes[row].add(device.process_index)
  return list(map(frozenset, processes))


def own_rows(b: int) -> list[int]:
  """Those of b rows that are on this process's devices, ascending; see row_processes."""
  me = jax.process_index()
  return [row for row, processes in enumerate(row_processes(b)) if me in processes]


def put_rows(x):
  """Copies this process's rows [own_rows, ...] to its devices.

  Returns the global array [b, ...], sharded along b on the mesh that is set.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return jnp.asarray(x)
  count = shards("b")
  b = len(x) // len(own_rows(count)) * count
  begin_of = {row: i for i, row in enumerate(own_rows(b))}

  def shard(index):
    begin = begin_of[index[0].start or 0]
    return x[begin : begin + b // count]

  return jax.make_array_from_callback((b, *x.shape[1:]), NamedSharding(mesh, act_spec("b")), shard)


def on_host(x) -> np.ndarray:
  """The whole array as numpy.

  With several processes all of them must call this, unless the array is replicated.
  """
  # Shards on another process's devices cannot be read here: the reshard all-gathers them.
  here = x.is_fully_addressable or x.is_fully_replicated
  return np.asarray(x if here else jax.reshard(x, P()))
