"""Adapters in and out of peft's folders: adapter_config.json and adapter_model.safetensors.

The folder names the weights that the adapters belong to. Ours also has their SHA-256, in the
metadata of the safetensors file, so that adapters are not put beside other weights.
"""

import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from srl_jax.errors import UserError
from srl_jax.policy import hf_files, lora
from srl_jax.policy.file_sums import check_checksums, write_checksums
from srl_jax.policy.hf_tensors import HF_WEIGHTS
from srl_jax.policy.lora import Lora, Shape
from srl_jax.policy.model import ModelConfig
from srl_jax.policy.sharding import on_host, param_spec
from srl_jax.policy.weights import check_new

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings of peft that change what an adapter computes, with the values that are read here.
PLAIN = {
  "peft_type": ("LORA",),
  "bias": ("none",),
  "fan_in_fan_out": (False,),
  "use_dora": (False,),
  "use_rslora": (False,),
  "use_qalora": (False,),
  "lora_bias": (False,),
  # Others change the weights beside the adapters when peft loads them.
  "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
EMPTY = ("modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform")
EMPTY += ("target_parameters", "exclude_modules", "layer_replication", "trainable_token_indices")
EMPTY += ("alora_invocation_tokens", "use_bdlora", "layers_pattern")


class Adapter(NamedTuple):
  """The shape of the adapters in a peft folder, and what they belong to.

  Fields: shape; model, the name or folder of the weights that they belong to; sha256, {file: hash}
  of those weights' files, {} where the folder is not ours.
  """

  shape: Shape
  model: str
  sha256: dict[str, str]


def is_peft(folder) -> bool:
  """Whether a folder has adapters in peft's format."""
  return (pathlib.Path(folder).expanduser() / CONFIG).is_file()


def tensors(adapters: Lora) -> Iterator[tuple[str, np.ndarray]]:
  """The adapters under peft's names and in its shapes, float32, one at a time.

  With several processes all must iterate.
  """
  for name, kind, param in _matrices(adapters):
    for i, matrix in enumerate(_to_peft(on_host(param[...]), kind, adapters.shape.rank)):
      yield _name(name, i, kind), matrix


def _matrices(adapters: Lora):
  """Yields (name of the matrix, "A" or "B", nnx.Param)."""
  for attribute, _, param in adapters.params():
    yield attribute[:-2], attribute[-1].upper(), param


def _name(name: str, layer: int, kind: str) -> str:
  module = HF_WEIGHTS[f"layers.{name}"][0].format(layer).removesuffix(".weight")
  return f"base_model.model.{module}.lora_{kind}.weight"


def _to_peft(stacked: np.ndarray, kind: str, rank: int) -> np.ndarray:
  """Each layer's matrix as [out, in]: of A, [rank, inputs]; of B, [outputs, rank]."""
  count = len(stacked)
  flat = stacked.reshape(count, -1, rank) if kind == "A" else stacked.reshape(count, rank, -1)
  return flat.transpose(0, 2, 1)


def config_json(shape: Shape, model: str) -> dict:
  """The contents of adapter_config.json, with the keys that peft and vLLM read.

  model: name or folder of the weights that the adapters belong to.
  """
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": model,
    "r": shape.rank,
    "lora_alpha": shape.alpha,
    "lora_dropout": 0.0,
    "target_modules": list(shape.targets),
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
  }


def write(folder: pathlib.Path, found, shape: Shape, base: dict) -> None:
  """Writes the two files into a folder that exists.

  Args:
    found: (name, array) pairs of `tensors`, of which all are on the host at one time.
    base: {"model": name or folder, "sha256": {file: hash}} of the weights that they belong to.
  """
  arrays = {name: np.ascontiguousarray(matrix) for name, matrix in found}
  save_file(arrays, folder / WEIGHTS, metadata={"format": "pt", "base": json.dumps(base)})
  (folder / WEIGHTS).chmod(0o644)  # safetensors writes mode 600; servers must read it
  (folder / CONFIG).write_text(json.dumps(config_json(shape, base["model"]), indent=2))


def save(adapters: Lora, folder, base: dict, checksums: bool = False) -> None:
  """Writes a folder that peft and vLLM load, atomically.

  Args:
    adapters: in one process.
    folder: new, or empty.
    base: as of `write`.
    checksums: whether SHA256SUMS is written, which `load` compares with the files.

  Raises UserError when `folder` exists and is not empty.
  """
  folder = check_new(folder)
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
    target = pathlib.Path(partial) / "adapter"
    target.mkdir()
    write(target, tensors(adapters), adapters.shape, base)
    if checksums:
      write_checksums(target)
    os.rename(target, folder)


def read_config(folder) -> Adapter:
  """The shape of the adapters in a peft folder, and what they belong to.

  Raises UserError for files that are missing or damaged, adapters that lora.py does not compute, or
  adapters that name no model.
  """
  folder = pathlib.Path(folder).expanduser()
  path = folder / CONFIG
  try:
    raw = json.loads(path.read_text())
    if not isinstance(raw, dict):
      raise ValueError("no object")
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path}: cannot be read ({error}); copy the file again") from error
  for key, allowed in PLAIN.items():
    if raw.get(key, allowed[0]) not in allowed:
      raise UserError(f"{path}: {key} is {raw[key]!r}, srl_jax reads {allowed[0]!r} only")
  for key in EMPTY:
    if raw.get(key):
      raise UserError(f"{path}: {key} is {str(raw[key])[:80]}, srl_jax reads adapters without it")
  rank, alpha, names = raw.get("r"), raw.get("lora_alpha"), raw.get("target_modules")
  numbers = type(rank) is int and 0 < rank <= 4096
  numbers = numbers and type(alpha) in (int, float) and 0 < alpha <= 1e6
  known = lora.TARGETS["all"]
  if not numbers or not isinstance(names, list) or not names or any(x not in known for x in names):
    raise UserError(
      f"{path}: r {hf_files.short(rank)}, lora_alpha {hf_files.short(alpha)}, target_modules "
      f"{str(names)[:80]}; srl_jax reads numbers above 0 (up to 4096 and a million) and a list of "
      f"{', '.join(known)}"
    )
  targets = tuple(name for name in known if name in names)
  model = raw.get("base_model_name_or_path")
  if not isinstance(model, str) or not model.strip():
    raise UserError(
      f"{path}: base_model_name_or_path is {hf_files.short(model)}; set it to the name or the"
      " folder of the model that the adapters were trained beside"
    )
  return Adapter(Shape(rank, float(alpha), targets), model, _base_sums(folder / WEIGHTS))


def _base_sums(path: pathlib.Path) -> dict[str, str]:
  """The hashes of the base's files in the metadata of `save`; {} if there are none."""
  try:
    found = dict(json.loads(hf_files.read_metadata(path)["base"])["sha256"])
  except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError):
    return {}  # `load` names damage
  return {str(name): str(value) for name, value in found.items()}


def load(folder, config: ModelConfig) -> Lora:
  """The adapters of a peft folder, float32, sharded over the mesh that is set.

  config: of the weights that they belong to. Raises UserError as read_config, and when a tensor is
  missing, superfluous or of another shape.
  """
  folder = pathlib.Path(folder).expanduser()
  check_checksums(folder, CONFIG)
  shape = read_config(folder).shape
  if not (folder / WEIGHTS).is_file():
    raise UserError(
      f"{folder}: no {WEIGHTS}; srl_jax reads safetensors only, which peft's save_pretrained writes"
    )
  stored = hf_files.read_file_headers(folder / WEIGHTS)
  adapters = lora.abstract(shape, config)
  _check(folder, adapters, stored)
  for (name, kind, param), (_, part, _) in zip(_matrices(adapters), adapters.params()):
    layers = []
    for i in range(config.num_hidden_layers):
      matrix = hf_files.map_tensor(stored[_name(name, i, kind)]).astype(np.float32)
      layers.append(matrix.T.reshape(param.shape[1:]))
    param.set_value(_placed(np.stack(layers), "l" + part))
  return adapters


def _check(folder, adapters: Lora, stored: dict) -> None:
  """Raises UserError unless the file has the tensors of these adapters."""
  expected = {}
  for name, kind, param in _matrices(adapters):
    count, rank = param.shape[0], adapters.shape.rank
    width = math.prod(param.shape[1:]) // rank
    for i in range(count):
      expected[_name(name, i, kind)] = (rank, width) if kind == "A" else (width, rank)
  faults = []
  for name, shape in expected.items():
    if name not in stored:
      faults.append(f"{name} is missing")
    elif stored[name].shape != shape:
      faults.append(f"{name} is {list(stored[name].shape)}, not {list(shape)}")
    elif stored[name].dtype not in hf_files.DISK_TYPES:
      faults.append(f"{name} is of type {stored[name].dtype}")
  faults += [f"{name} has no place" for name in sorted(stored.keys() - expected.keys())]
  if faults:
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    raise UserError(
      f"{folder / WEIGHTS}: the adapters do not fit the model: {'; '.join(faults[:5])}{more}"
    )


def _placed(array: np.ndarray, letters: str) -> jax.Array:
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return jnp.asarray(array)
  layout = jax.sharding.NamedSharding(mesh, param_spec(letters))
  return jax.make_array_from_callback(array.shape, layout, array.__getitem__)
