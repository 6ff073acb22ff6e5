"""The part that runs inside the vLLM server: it loads weights from files in a shared folder.

vLLM loads `register` in each of its processes through the entry point vllm.general_plugins, and a
server that is started with `--weight-transfer-config '{"backend": "srl_jax"}'` calls WeightFiles.
Nothing of srl_jax and no jax may be imported here: the server's Python environment has neither.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import time

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
  WeightTransferEngine,
  WeightTransferInitInfo,
  WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import (
  finalize_layerwise_reload,
  initialize_layerwise_reload,
)

BACKEND = "srl_jax"
LISTED = 5  # faults in a message, before "and N more"
log = logging.getLogger("vllm.srl_jax")  # below vLLM's own logger, whose lines the server prints


def register() -> None:
  """Makes the backend known to this process; vLLM may call it twice."""
  if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, __name__, "WeightFiles")


@dataclasses.dataclass
class Update(WeightTransferUpdateInfo):
  """folder: with the safetensors files of one whole set of weights, relative to the root."""

  folder: str


class WeightFiles(WeightTransferEngine):
  """Loads whole sets of weights from folders under $SRL_WEIGHTS_ROOT (default /dev/shm).

  A set that lacks a tensor, has one too many or one of a wrong shape is refused before the model is
  touched, because vLLM's own loader would take it and answer 200 with a model of garbage.
  """

  init_info_cls = WeightTransferInitInfo
  update_info_cls = Update

  def init_transfer_engine(self, init_info) -> None:
    """Nothing to connect to: the files are the transport."""

  def start_weight_update(self) -> None:
    """Nothing yet: the model is touched only after the files were checked."""

  def finish_weight_update(self) -> None:
    """Nothing left: update_weights returns when the new weights are in use."""

  def shutdown(self) -> None:
    """Holds nothing."""

  def update_weights(self, update_info: dict) -> None:
    # The base class would also synchronise an accelerator, which a CPU server does not have.
    self.receive_weights(self.parse_update_info(update_info))
    if self.device.type != "cpu":
      torch.accelerator.synchronize()

  def receive_weights(self, update_info: Update) -> None:
    """Checks the files, then loads them; ValueError, model untouched, when they do not fit."""
    begun = time.perf_counter()
    expected = expected_shapes(self.model_config.hf_config)
    with contextlib.ExitStack() as opened:
      tensors = {}  # name -> the open file
      for file in files_in(update_info.folder):
        found = opened.enter_context(safe_open(file, framework="pt"))
        for name in found.keys():  # noqa: SIM118 - safe_open is no dict
          if name in tensors:
            raise ValueError(f"weights in {update_info.folder!r} refused: {name} is there twice")
          tensors[name] = found
      shapes = {name: shape_of(name, file) for name, file in tensors.items()}
      check(shapes, expected, update_info.folder)
      checked = time.perf_counter()
      # In the network's order, in which vLLM can finish one layer after the other. Each tensor is
      # mapped, not read, until vLLM copies it.
      self._load((name, tensors[name].get_tensor(name)) for name in expected)
    log.info(
      "%s: checked %d tensors in %.3f s, loaded them in %.3f s",
      *(update_info.folder, len(expected), checked - begun, time.perf_counter() - checked),
    )

  def _load(self, tensors) -> None:
    """Loads (name, tensor) pairs into the model."""
    # vLLM may have fused or repacked weights after loading; a layer-wise reload undoes that, loads,
    # and repeats it.
    initialize_layerwise_reload(self.model)
    self.model.load_weights(tensors)
    finalize_layerwise_reload(self.model, self.model_config)
    if self.device.type == "cpu" and self.model_config.hf_config.tie_word_embeddings:
      # On a CPU the head multiplies by a packed copy of the weights. The reload packs the new ones
      # for the embedding only; a tied head would keep its copy of the old ones.
      self.model.lm_head.cpu_linear = self.model.model.embed_tokens.cpu_linear


def files_in(folder: str) -> list[pathlib.Path]:
  """The safetensors files of a folder under the root; ValueError for a folder outside it."""
  # The folder's name is from the network: nothing outside the root may be opened, by ".." or links.
  root = pathlib.Path(os.environ.get("SRL_WEIGHTS_ROOT", "/dev/shm")).resolve()
  target = (root / folder).resolve()
  files = []
  if target.is_relative_to(root):
    for file in sorted(target.glob("*.safetensors")):
      # A link inside the root may point out of it.
      if file.resolve().is_relative_to(root) and file.is_file():
        files.append(file)
  if not files:
    raise ValueError(f"weights: {folder!r} is no folder with safetensors files under {root}")
  return files


def shape_of(name: str, file) -> tuple[int, ...]:
  """A tensor's shape, from the header of an open file."""
  return tuple(file.get_slice(name).get_shape())


def expected_shapes(config) -> dict[str, tuple[int, ...]]:
  """{Hugging Face name: shape} of a dense model's weights; `config` is its PretrainedConfig."""
  d, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
  heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
  # The same architectures and names as policy/hf_tensors.py, which cannot be imported here.
  h = getattr(config, "head_dim", None) or d // heads
  shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
  if not config.tie_word_embeddings:
    shapes["lm_head.weight"] = (v, d)
  layer = {
    "input_layernorm.weight": (d,),
    "self_attn.q_proj.weight": (heads * h, d),
    "self_attn.k_proj.weight": (kv_heads * h, d),
    "self_attn.v_proj.weight": (kv_heads * h, d),
    "self_attn.o_proj.weight": (d, heads * h),
    "post_attention_layernorm.weight": (d,),
    "mlp.gate_proj.weight": (f, d),
    "mlp.up_proj.weight": (f, d),
    "mlp.down_proj.weight": (d, f),
  }
  if config.model_type == "qwen2":
    layer["self_attn.q_proj.bias"] = (heads * h,)
    layer["self_attn.k_proj.bias"] = layer["self_attn.v_proj.bias"] = (kv_heads * h,)
  if config.model_type == "qwen3":
    layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (h,)
  for i in range(config.num_hidden_layers):
    for name, shape in layer.items():
      shapes[f"model.layers.{i}.{name}"] = shape
  return shapes


def check(found: dict, expected: dict, folder: str) -> None:
  """ValueError with what differs, unless both have the same names and shapes."""
  missing, other_shape = [], []
  for name, shape in expected.items():
    if name not in found:
      missing.append(f"{name} is missing")
    elif found[name] != shape:
      other_shape.append(f"{name} is {list(found[name])}, the model has {list(shape)}")
  unknown = [f"{name} has no place in the model" for name in found if name not in expected]
  faults = missing + unknown + other_shape
  if faults:
    more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    raise ValueError(f"weights in {folder!r} refused: {'; '.join(faults[:LISTED])}{more}")
