"""The files of a Hugging Face model folder: where to get one, its config.json, its safetensors.

The headers of safetensors files are read first. Tensors are memory-mapped one by one after that,
because the mapping of a whole file counts as memory until it is closed.
"""

import json
import math
import pathlib
import struct
from typing import NamedTuple

import huggingface_hub
import ml_dtypes
import numpy as np
import safetensors

from srl_jax.errors import UserError
from srl_jax.policy.model import Llama3Rope, ModelConfig

DISK_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Bytes of an element of the types of safetensors.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}
SIZES |= {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1}
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Files that are downloaded from the hub: weights, settings and the tokenizer, no code.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt"]
# Files that an export copies from the folder that the model was loaded from.
COMPANIONS = ["generation_config.json", "chat_template.jinja", "chat_template.json", "merges.txt"]
COMPANIONS += ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"]
COMPANIONS += ["added_tokens.json"]

# Numbers that config.json must contain; Hugging Face's defaults for them fit no released model.
REQUIRED = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
REQUIRED += ["num_attention_heads", "num_key_value_heads", "rope_theta", "rms_norm_eps"]
_FLOATS = {"rope_theta": 1e12, "rms_norm_eps": 1.0}  # with their largest values
_FLOATS |= {"factor": 1e6, "low_freq_factor": 1e6, "high_freq_factor": 1e6}
_LAYERS, _SIZE = 1000, 1 << 24  # the largest of other numbers
_REMEDY = (
  "use a dense Qwen2, Qwen2.5, Qwen3 or Llama checkpoint with plain attention and unquantised"
  " weights"
)
ARCHITECTURES = {  # model_type: the class in transformers and vLLM
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "llama": "LlamaForCausalLM",
}


class Stored(NamedTuple):
  """A tensor of a safetensors file: offset in bytes, dtype under its name in the file."""

  path: pathlib.Path
  offset: int
  shape: tuple[int, ...]
  dtype: str


def resolve_model(name: str) -> pathlib.Path:
  """Folder of a model: `name` itself if it is a folder, else downloaded from the Hugging Face hub.

  Raises UserError when it is neither.
  """
  folder = pathlib.Path(name).expanduser()
  if name and folder.is_dir():  # Path("") is the current folder
    return folder
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
  except (
    OSError,
    ValueError,
  ) as error:  # the hub's errors are OSErrors and, for names, ValueErrors
    reason = str(error).strip().splitlines()[0]
    raise UserError(
      f"model {name!r}: not a folder here, and not to be had from the Hugging Face hub ({reason}); "
      "give the path of a local folder with config.json and safetensors files"
    ) from error


def load_config(folder, dtype: str = "float32") -> ModelConfig:
  """Architecture in `folder`/config.json (of transformers 4 or 5), with the compute type `dtype`.

  Raises UserError for a file that is missing, broken, of another architecture, or with a setting
  that model.py does not compute.
  """
  path = pathlib.Path(folder) / "config.json"
  try:
    raw = json.loads(path.read_text())
  except FileNotFoundError as error:
    remedy = "a model folder needs config.json"
    if (path.parent / "adapter_config.json").exists():
      remedy = "these are adapters: give them as init_from, with lora.rank, and their base as model"
    raise UserError(f"{path}: no such file; {remedy}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: not JSON ({error}); copy the file again") from error
  if not isinstance(raw, dict):
    raise UserError(f"{path}: a JSON {type(raw).__name__}, not an object; copy the file again")
  # transformers 5 writes rope_parameters, with rope_theta in it; 4 writes rope_scaling beside it.
  rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  if not isinstance(rope, dict):
    raise UserError(
      f"{path}: rope_scaling / rope_parameters is {short(rope)}, not an object; copy the file again"
    )
  _check_architecture(path, raw, rope)
  _check_rope_once(path, raw, rope)
  sizes = {key: raw.get(key, rope.get(key)) for key in REQUIRED}
  sizes["max_position_embeddings"] = raw.get("max_position_embeddings", 32768)
  _check_sizes(path, sizes)
  heads, shared = sizes["num_attention_heads"], sizes["num_key_value_heads"]
  if heads % shared:
    raise UserError(
      f"{path}: num_attention_heads {heads} is not a multiple of num_key_value_heads {shared}; "
      "copy the file again"
    )
  head_dim = raw.get("head_dim") or sizes["hidden_size"] // heads
  _check_sizes(path, {"head_dim": head_dim})
  if head_dim % 2:
    raise UserError(f"{path}: head_dim {head_dim} is odd, but rotary embeddings turn pairs")
  tied = raw.get("tie_word_embeddings", False)
  if not isinstance(tied, bool):
    raise UserError(f"{path}: tie_word_embeddings is {short(tied)}, not true or false")
  return ModelConfig(
    **sizes,
    head_dim=head_dim,
    tie_word_embeddings=tied,
    model_type=raw["model_type"],
    rope_scaling=_rope_scaling(path, rope),
    dtype=dtype,
  )


def _rope_scaling(path: pathlib.Path, rope: dict) -> Llama3Rope | None:
  """Llama 3.1's scaling of the rotary embedding, if rope_scaling or rope_parameters has it."""
  if _rope_type(rope) == "default":
    return None
  values = {key: rope.get(key) for key in Llama3Rope._fields}
  _check_sizes(path, values)
  if values["low_freq_factor"] >= values["high_freq_factor"]:
    raise UserError(
      f"{path}: low_freq_factor {values['low_freq_factor']} is not below high_freq_factor"
      f" {values['high_freq_factor']}; copy the file again"
    )
  return Llama3Rope(**values)


def _check_rope_once(path: pathlib.Path, raw: dict, rope: dict) -> None:
  """Raises UserError if a setting of the rotary embedding has two values in different places."""
  # transformers 4 and 5 and vLLM do not agree on which of two places counts.
  for key in ("rope_scaling", "rope_theta"):
    other = raw.get(key) or {}
    for name, value in (other if isinstance(other, dict) else {key: other}).items():
      if name in rope and rope[name] != value:
        raise UserError(
          f"{path}: {name} is {short(value)} in one place and {short(rope[name])} in"
          " rope_parameters; remove the wrong one"
        )


def _rope_type(rope: dict):
  return rope.get("rope_type", rope.get("type", "default"))


def _check_architecture(path: pathlib.Path, raw: dict, rope: dict) -> None:
  """Raises UserError for a setting that model.py does not compute."""
  family = raw.get("model_type")
  if not isinstance(family, str) or family not in ARCHITECTURES:
    known = ", ".join(ARCHITECTURES)
    raise UserError(
      f"{path}: model_type is {short(family)}, srl_jax computes {known} only; {_REMEDY}"
    )
  layer_types = raw.get("layer_types") or []
  if not isinstance(layer_types, list):
    raise UserError(f"{path}: layer_types is {short(layer_types)}, not a list; {_REMEDY}")
  # Layers from max_window_layers on have a sliding window, if any has.
  first, layers = raw.get("max_window_layers", 0), raw.get("num_hidden_layers", 0)
  none_has = isinstance(first, int) and isinstance(layers, int) and first >= layers
  sliding = raw.get("use_sliding_window", False) and not none_has
  sliding = sliding or any(kind != "full_attention" for kind in layer_types)
  # "llama3" is the one scaling that model.py computes; any other type fails the check below.
  rope_type = "default" if _rope_type(rope) == "llama3" else _rope_type(rope)
  wanted_class = [ARCHITECTURES[family]]
  for key, value, wanted in [
    ("architectures", raw.get("architectures", wanted_class), wanted_class),
    ("hidden_act", raw.get("hidden_act", "silu"), "silu"),
    ("rope_scaling / rope_parameters", rope_type, "default"),
    ("partial_rotary_factor", raw.get("partial_rotary_factor", 1), 1),
    ("partial_rotary_factor", rope.get("partial_rotary_factor", 1), 1),
    ("attention_bias", raw.get("attention_bias", False) and family != "qwen2", False),
    ("mlp_bias", raw.get("mlp_bias", False), False),
    ("use_sliding_window / layer_types", bool(sliding), False),
    ("quantization_config", raw.get("quantization_config"), None),
  ]:
    if value != wanted:
      raise UserError(
        f"{path}: {key} is {short(value)}, srl_jax computes {wanted!r} only; {_REMEDY}"
      )


def _check_sizes(path: pathlib.Path, sizes: dict) -> None:
  """Raises UserError for a value that is no number, or one that no model has."""
  for key, value in sizes.items():
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
      raise UserError(f"{path}: {key} is {short(value)}, not a positive number; {_REMEDY}")
    if key not in _FLOATS and not isinstance(value, int):
      raise UserError(f"{path}: {key} is {value!r}, not a whole number; copy the file again")
    # An upper limit, so that a damaged file cannot make us allocate a billion layers.
    largest = _FLOATS.get(key, _LAYERS if key == "num_hidden_layers" else _SIZE)
    if value > largest:
      raise UserError(f"{path}: {key} is {short(value)}, more than {largest}; {_REMEDY}")


def short(value) -> str:
  """The value as a part of a message."""
  text = repr(value)
  return text if len(text) < 80 else f"{text[:76]}..."


def config_json(config: ModelConfig, torch_dtype: str, source=None) -> dict:
  """The contents of config.json, with the keys that transformers 4 and 5 and vLLM read.

  Args:
    torch_dtype: type of the weights in the files.
    source: a folder with a config.json; the special token ids are copied from it. Or None.
  """
  raw = dict(
    architectures=[ARCHITECTURES[config.model_type]],
    model_type=config.model_type,
    vocab_size=config.vocab_size,
    hidden_size=config.hidden_size,
    intermediate_size=config.intermediate_size,
    num_hidden_layers=config.num_hidden_layers,
    num_attention_heads=config.num_attention_heads,
    num_key_value_heads=config.num_key_value_heads,
    head_dim=config.head_dim,
    hidden_act="silu",
    max_position_embeddings=config.max_position_embeddings,
    rope_theta=config.rope_theta,
    rms_norm_eps=config.rms_norm_eps,
    tie_word_embeddings=config.tie_word_embeddings,
    attention_dropout=0.0,
    torch_dtype=torch_dtype,
  )
  # Each family's own keys, which transformers' classes for it have.
  if config.model_type.startswith("qwen"):
    raw["use_sliding_window"] = False
  if config.model_type != "qwen2":
    raw["attention_bias"] = False
  if config.rope_scaling is not None:
    raw["rope_scaling"] = {"rope_type": "llama3", **config.rope_scaling._asdict()}
  if source is not None:
    given = json.loads((pathlib.Path(source) / "config.json").read_text())
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    raw |= {key: given[key] for key in tokens if key in given}
  return raw


def read_headers(folder) -> dict[str, Stored]:
  """{Hugging Face name: Stored} of all tensors in the folder.

  Raises UserError where a file is missing or its header is not sound: see `_read_header`. Two
  swapped tensors of one shape and type are not noticed, because headers do not show them.
  """
  folder = pathlib.Path(folder)
  stored = {}
  for path in weight_files(folder):
    if not path.exists():
      raise UserError(f"{path}: missing, but {INDEX} names it; copy the whole folder again")
    found = read_file_headers(path)
    twice = sorted(found.keys() & stored.keys())
    if twice:
      other = stored[twice[0]].path.name
      raise UserError(f"{path}: {twice[0]} is in {other} too; copy the whole folder again")
    stored |= found
  types = {tensor.dtype for tensor in stored.values()}
  if {"F16", "BF16"} <= types:  # no model mixes them, but they have one size
    raise UserError(f"{folder}: tensors of type F16 and of BF16; copy the whole folder again")
  return stored


def read_file_headers(path: pathlib.Path) -> dict[str, Stored]:
  """{name: Stored} of the tensors of one safetensors file; UserError where it is not sound."""
  try:
    return _read_header(path)
  except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"{path}: not a whole safetensors file ({reason}); copy it again") from error


def read_metadata(path: pathlib.Path) -> dict[str, str]:
  """The metadata of a safetensors file; {} if it has none. The file has been checked before."""
  with safetensors.safe_open(path, "numpy") as file:
    return file.metadata() or {}


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of a folder."""
  if (folder / WEIGHTS).exists():
    return [folder / WEIGHTS]
  if not (folder / INDEX).exists():
    raise UserError(
      f"{folder}: no weights ({WEIGHTS} or {INDEX}); srl_jax reads safetensors only, which "
      "transformers' save_pretrained writes"
    )
  try:
    names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(f"{folder / INDEX}: no weight_map in it; copy the file again") from error
  # Names are joined to the folder, so none may lead out of it.
  for name in names:
    if not isinstance(name, str) or not name.endswith(".safetensors") or "/" in name:
      raise UserError(f"{folder / INDEX}: {short(name)} is no safetensors file; copy it again")
  return [folder / name for name in sorted(names)]


def _read_header(path: pathlib.Path) -> dict[str, Stored]:
  """The tensors of one safetensors file.

  The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes with the length of the
  header, the header in JSON, and the tensors' bytes, one after another without gaps to the end of
  the file. Raises ValueError, KeyError or TypeError for anything else.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    (length,) = struct.unpack("<Q", file.read(8))
    start = 8 + length  # the header's offsets count from here
    if start > size or length > MAX_HEADER_BYTES:
      raise ValueError("the header is longer than the file or than 100 MB")
    header = json.loads(file.read(length), object_pairs_hook=_without_repeats)
  if not isinstance(header, dict):
    raise TypeError("its header is no object")
  header.pop("__metadata__", None)
  stored, ends = {}, {}
  for name, entry in header.items():
    if len(name) > 200 or not name.isprintable():
      raise ValueError(f"a tensor is called {short(name)}")
    begin, end = _check_entry(name, entry, size - start)
    if begin < end:  # a tensor without elements has no bytes, and may share an offset
      if begin in ends:
        raise ValueError(f"{name} and {ends[begin][0]} are at one place")
      ends[begin] = name, end
    stored[name] = Stored(path, start + begin, tuple(entry["shape"]), entry["dtype"])
  _check_layout(ends, size - start)
  return stored


def _check_entry(name: str, entry: dict, size: int) -> tuple[int, int]:
  """The first byte of a tensor and the one after its last, if they fit its shape and type."""
  shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
  for number in [*shape, begin, end]:
    if type(number) is not int or number < 0:
      raise ValueError(f"{name}: {short(number)} in its shape or offsets")
  if dtype not in SIZES:
    raise ValueError(f"{name} is of type {short(dtype)}, not one of {', '.join(SIZES)}")
  if end > size:
    raise ValueError(f"{name} ends beyond the file")
  if end - begin != math.prod(shape) * SIZES[dtype]:
    raise ValueError(f"{name} has {end - begin} bytes, {dtype} {short(shape)} has another number")
  return begin, end


def _check_layout(ends: dict[int, tuple[str, int]], size: int) -> None:
  """Raises ValueError unless tensors fill `size` bytes; ends is {first byte: (name, end)}."""
  # Without gaps and overlaps a damaged offset cannot select another tensor's bytes unnoticed.
  position = 0
  for begin in sorted(ends):
    name, end = ends[begin]
    if begin != position:
      raise ValueError(f"{name} begins at byte {begin}, the tensor before it ends at {position}")
    position = end
  if position != size:
    raise ValueError(f"{size - position} bytes after the last tensor")


def _without_repeats(pairs: list[tuple]) -> dict:
  """The pairs of a JSON object as a dict; ValueError where a key is repeated.

  json.loads would keep the last value and hide the damage.
  """
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError("a name is repeated in its header")
  return found


def map_tensor(tensor: Stored) -> np.ndarray:
  """The tensor's values, memory-mapped; the mapping ends with the array."""
  dtype = DISK_TYPES[tensor.dtype]
  return np.memmap(tensor.path, dtype, "r", tensor.offset, tensor.shape)


def computation_dtype(folder: str | pathlib.Path) -> str:
  """Returns the type to compute in for the weights of a model folder: "float32" if all are, else
  "bfloat16".
  """
  stored = {tensor.dtype for tensor in read_headers(folder).values()}
  return "float32" if stored == {"F32"} else "bfloat16"
