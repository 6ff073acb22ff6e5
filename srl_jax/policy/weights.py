"""Loads and saves Hugging Face folders (config.json and safetensors), one tensor at a time.

The table of hf_tensors.py maps our weights to the tensors of a checkpoint. A checkpoint's headers
are compared with its config.json before anything is allocated.
"""

import functools
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors.numpy import save_file

from srl_jax.errors import UserError
from srl_jax.policy.file_sums import check_checksums, write_checksums
from srl_jax.policy.hf_files import (
  COMPANIONS,
  DISK_TYPES,
  INDEX,
  WEIGHTS,
  config_json,
  load_config,
  map_tensor,
  read_headers,
)
from srl_jax.policy.hf_tensors import HF_WEIGHTS, hf_tensors, letters_of, params_of, shapes_of
from srl_jax.policy.model import ModelConfig, Qwen2, abstract
from srl_jax.policy.sharding import param_spec, platform

MAX_FILE_BYTES = 5 * 10**9  # transformers' limit
LISTED = 10  # names in an error message, before "and N more"


def load_hf(folder, mesh: Mesh | None = None, dtype=jnp.float32, compute_dtype=None):
  """Loads a model from a Hugging Face folder onto the mesh; each device reads only its own shard.

  Some tools write lm_head.weight for a tied model: it is ignored if it equals the embedding and
  refused if it differs. An untied model must have one.

  Args:
    folder: has config.json and model.safetensors, or model.safetensors.index.json and its files.
    mesh: over which the weights are sharded; by default the mesh that is set (jax.set_mesh), and
      without one the default device.
    dtype: type of the weights in memory.
    compute_dtype: type that the model computes in; by default `dtype`.

  Returns:
    (config, model): ModelConfig and Qwen2.

  Raises:
    UserError: a model that model.py does not compute, files that are missing or damaged (by their
      headers, or by the checksums that an export has), or tensors that are missing, superfluous, or
      of another shape than config.json gives. Nothing has been allocated at that point.
  """
  dtype = jnp.dtype(dtype)
  mesh = jax.sharding.get_mesh() if mesh is None else mesh
  # All checks precede the first allocation: a wrong folder fails in seconds, not in minutes.
  check_checksums(folder)
  config = load_config(folder, jnp.dtype(compute_dtype or dtype).name).on_platform(platform(mesh))
  stored = _check_tensors(folder, config, read_headers(folder))
  model = abstract(config)
  params = params_of(model)
  # The largest first, so that its host copy is not added to all other weights in memory.
  for name in sorted(params, key=lambda name: -math.prod(params[name].shape)):
    read = functools.partial(_read_weight, stored, config, name, dtype)
    if mesh.empty:
      array = jax.device_put(read((slice(None),) * params[name].ndim))
    else:
      layout = NamedSharding(mesh, param_spec(letters_of(name)))
      array = _put_shards(read, params[name].shape, layout)
    params[name].set_value(jax.block_until_ready(array))  # frees the host's copy
  return config, model


def check_new(folder) -> pathlib.Path:
  """`folder` as a path; raises UserError if save_hf would overwrite something in it."""
  folder = pathlib.Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"{folder}: exists and is not empty; give a new folder or remove it first")
  return folder


def save_hf(
  config: ModelConfig,
  model: Qwen2,
  folder,
  *,
  dtype=None,
  source=None,
  stop_ids: Sequence[int] = (),
  checksums: bool = False,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
  """Writes a folder that transformers and vLLM load, atomically.

  Args:
    config, model: of load_hf or model.init. With several processes all must call this; the first
      one writes.
    folder: new, or empty; nothing that exists is overwritten.
    dtype: type of the weights in the files, float32 or bfloat16; by default that of the model.
    source: a model folder; its tokenizer, chat template, generation settings and special token ids
      are copied.
    stop_ids: token ids that end a response, for config.json and generation_config.json; () keeps
      those of `source`. transformers and vLLM stop at no other token.
    checksums: whether SHA256SUMS is written, which load_hf compares with the files.
    progress: called with the number of tensors so far, and of all.

  Raises UserError when `folder` exists and is not empty.
  """
  folder = check_new(folder)
  dtype = jnp.dtype(dtype or model.norm.dtype)
  files = _plan_files(config, dtype)
  tensors = hf_tensors(config, model, dtype)
  if jax.process_index() > 0:
    for _ in tensors:  # takes part in the all-gathers
      pass
    return
  # Beside the target, because a rename is atomic only within one file system.
  folder.parent.mkdir(parents=True, exist_ok=True)
  written, count = 0, sum(map(len, files.values()))
  with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
    target = pathlib.Path(partial) / "model"
    target.mkdir()
    for file, names in files.items():
      # `tensors` has the order of the plan, so the host holds one file's tensors at a time.
      part = {}
      for name, (_, array) in zip(names, tensors):
        part[name] = np.asarray(array)
        written += 1
        progress(written, count)
      save_file(part, target / file, metadata={"format": "pt"})
      (target / file).chmod(0o644)  # safetensors writes mode 600; servers must read it
    if len(files) > 1:
      weight_map = {name: file for file, names in files.items() for name in names}
      size = sum(math.prod(shape) for _, _, shape in shapes_of(config).values()) * dtype.itemsize
      index = {"metadata": {"total_size": size}, "weight_map": weight_map}
      (target / INDEX).write_text(json.dumps(index, indent=2))
    raw = config_json(config, dtype.name, source)
    (target / "config.json").write_text(json.dumps(raw | _ends(stop_ids), indent=2))
    for name in COMPANIONS if source is not None else ():
      if (pathlib.Path(source) / name).exists():
        shutil.copyfile(pathlib.Path(source) / name, target / name)
    if stop_ids:
      generation = target / "generation_config.json"
      given = json.loads(generation.read_text()) if generation.exists() else {}
      generation.write_text(json.dumps(given | _ends(stop_ids), indent=2))
    if checksums:
      write_checksums(target)
    os.rename(target, folder)


def _ends(stop_ids):
  return {"eos_token_id": list(stop_ids)} if stop_ids else {}


def _check_tensors(folder, config, stored):
  """`stored` without a tied model's repeated head; UserError unless it matches config.json."""
  # All faults are collected, because a wrong config.json makes many.
  expected, faults = shapes_of(config), []
  stored = dict(stored)
  head, embedding = (HF_WEIGHTS[name][0] for name in ("lm_head", "embed_tokens"))
  repeated = config.tie_word_embeddings and head in stored and embedding in stored
  if repeated and not _same_bits(stored.pop(head), stored[embedding]):
    faults.append(
      f"{head} differs from {embedding} though config.json has tie_word_embeddings (set that to "
      "false to use both)"
    )
  for name, (_, _, shape) in expected.items():
    if name not in stored:
      faults.append(f"{name} {list(shape)} is missing")
    elif stored[name].shape != shape:
      faults.append(f"{name} is {list(stored[name].shape)}, config.json makes it {list(shape)}")
    elif stored[name].dtype not in DISK_TYPES:
      faults.append(f"{name} is of type {stored[name].dtype}, not one of {', '.join(DISK_TYPES)}")
  faults += [
    f"{name} {list(stored[name].shape)} has no place in the model"
    for name in sorted(stored.keys() - expected.keys())
  ]
  if faults:
    more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    raise UserError(
      f"{folder}: the weights do not fit config.json: {'; '.join(faults[:LISTED])}{more}. "
      "Put the config.json and the safetensors files of one checkpoint there"
    )
  return stored


def _same_bits(a, b):
  if (a.shape, a.dtype) != (b.shape, b.dtype) or a.dtype not in DISK_TYPES:
    return False
  # Row by row, so that no whole embedding is in memory; bits, because nan differs from itself.
  return all(
    np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in zip(map_tensor(a), map_tensor(b))
  )


def _read_weight(stored, config, name, dtype, index):
  """The shard `index` (slices of our weight's dimensions) of our weight `name`, as numpy."""
  hf_name, dims = HF_WEIGHTS[name]
  letters, disk = letters_of(name), dims.replace(",", "")
  sizes = config.sizes()

  def part(layer, index):
    # E.g. q_proj: a file's [n * h, d] -> [n, h, d] -> our [d, n, h], of which a shard is cut out.
    # The file is memory-mapped, so only the shard's pages are read.
    mapped = map_tensor(stored[hf_name.format(layer)]).reshape([sizes[letter] for letter in disk])
    return mapped.transpose([disk.index(letter) for letter in letters if letter != "l"])[index]

  if letters[0] != "l":
    return np.array(part(None, index), dtype)
  # Our weight is stacked along l; the files have one tensor for each layer.
  layers = range(config.num_hidden_layers)[index[0]]
  shape = [len(range(sizes[letter])[cut]) for letter, cut in zip(letters, index)]
  stacked = np.empty(shape, dtype)
  for row, layer in enumerate(layers):
    stacked[row] = part(layer, index[1:])
  return stacked


def _put_shards(read, shape, sharding):
  """Global array from `read(index)`, which is called once for each distinct shard of this host."""
  # Devices that replicate a shard have the same index, and share one read.
  devices_of = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    devices_of.setdefault(tuple((cut.start, cut.stop) for cut in index), []).append(device)
  shards = []
  for bounds, devices in devices_of.items():
    part = read(tuple(slice(*cut) for cut in bounds))
    shards += [jax.device_put(part, device) for device in devices]
    jax.block_until_ready(shards)  # the host holds one shard at a time
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _plan_files(config, dtype):
  """{file name: Hugging Face names}, in the order of hf_tensors, at most MAX_FILE_BYTES each."""
  files, room = [], 0
  for name, (_, _, shape) in shapes_of(config).items():
    size = math.prod(shape) * dtype.itemsize
    if not files or size > room:
      files.append([])
      room = MAX_FILE_BYTES
    files[-1].append(name)
    room -= size
  if len(files) == 1:
    return {WEIGHTS: files[0]}
  total = len(files)
  return {f"model-{i:05}-of-{total:05}.safetensors": part for i, part in enumerate(files, 1)}
