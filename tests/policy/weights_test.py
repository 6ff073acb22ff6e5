"""Loading and saving Hugging Face folders: equal bits, refusals, memory."""

import json
import pathlib
import shutil
import struct
import subprocess
import sys

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from srl_jax.policy import hf_files, sharding, weights
from tests.policy.conftest import CASES, LLAMA3_ROPE

CASE = "gqa2-untied"


def bits(array):
  return np.asarray(array).tobytes()


def read_all(folder):
  """{name: array} of all safetensors files of a folder."""
  return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


@pytest.fixture
def copy(hf_case, tmp_path):
  """copy(case) -> a folder of that case, to be damaged."""

  def copied(case=CASE):
    return pathlib.Path(shutil.copytree(hf_case(case).folder, tmp_path / "model"))

  return copied


def edit_config(folder, **values):
  """Sets keys of config.json; None deletes."""
  raw = json.loads((folder / "config.json").read_text()) | values
  raw = {key: value for key, value in raw.items() if value is not None}
  (folder / "config.json").write_text(json.dumps(raw))


def edit_tensors(folder, change):
  """Rewrites model.safetensors with change(tensors), which edits the dict."""
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# ---- loading ----


def test_load_config_reads_transformers_4_and_5(hf_case, copy):
  config = hf_case(CASE).config
  assert (config.head_dim, config.rope_theta, config.rms_norm_eps) == (16, 1e4, 1e-5)
  folder = copy()
  assert "rope_parameters" in json.loads((folder / "config.json").read_text())
  old_style = dict(rope_parameters=None, rope_theta=1e4, rope_scaling=None, dtype=None)
  edit_config(folder, **old_style, torch_dtype="float32")
  assert hf_files.load_config(folder).on_platform("cpu") == config
  edit_config(folder, head_dim=None, hidden_size=64)  # absent: hidden size / heads
  assert hf_files.load_config(folder).head_dim == 16


@pytest.mark.parametrize("disk", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("memory", ["float32", "bfloat16"])
def test_load_hf_casts_each_tensor_once(hf_case, copy, disk, memory):
  folder = copy()
  edit_tensors(
    folder, lambda tensors: tensors.update({k: v.astype(disk) for k, v in tensors.items()})
  )
  config, model = weights.load_hf(folder, dtype=memory)
  assert config.dtype == model.config.dtype == memory
  assert {leaf.dtype.name for leaf in jax.tree.leaves(model)} == {memory}
  for name, array in weights.hf_tensors(config, model):
    original = hf_case(CASE).theirs.state_dict()[name].numpy()
    assert bits(array) == bits(original.astype(disk).astype(memory)), name


@pytest.mark.parametrize("spec", ["data=8", "fsdp=8", "data=2,fsdp=2,tensor=2", "fsdp=4,tensor=2"])
def test_load_hf_reads_only_each_devices_part(hf_case, monkeypatch, spec):
  hf = hf_case(CASE)
  mesh, largest = sharding.make_mesh(spec), 0
  put = jax.device_put

  def watched_put(x, *args):
    nonlocal largest
    largest = max(largest, x.nbytes)
    return put(x, *args)

  monkeypatch.setattr(jax, "device_put", watched_put)
  _, model = weights.load_hf(hf.folder, mesh)
  shards = [array.addressable_shards[0].data for array in jax.tree.leaves(model)]
  assert largest == max(shard.nbytes for shard in shards)
  assert model.layers.q_proj[...].sharding.spec == sharding.param_spec("ldnh")
  for ours, expected in zip(jax.tree.leaves(model), jax.tree.leaves(hf.model)):
    assert ours.sharding.mesh == mesh
    assert bits(ours) == bits(expected)
  with jax.set_mesh(mesh):  # and by default onto the mesh that is set
    assert weights.load_hf(hf.folder)[1].norm[...].sharding == model.norm[...].sharding


def test_load_hf_of_a_tied_model_with_a_repeated_head(hf_case, copy):
  folder = copy("gqa1-tied")

  def repeat(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

  edit_tensors(folder, repeat)
  _, model = weights.load_hf(folder)
  assert jax.tree.structure(model) == jax.tree.structure(hf_case("gqa1-tied").model)

  def differ(tensors):
    tensors["lm_head.weight"][3, 4] += 1

  edit_tensors(folder, differ)
  with pytest.raises(ValueError, match="lm_head.weight .*model.embed_tokens.weight"):
    weights.load_hf(folder)


# ---- refusals, before anything is read ----


@pytest.mark.parametrize(
  "values, message",
  [
    (dict(model_type="mistral"), "model_type is 'mistral', srl_jax computes qwen2, qwen3, llama"),
    (
      dict(model_type="qwen3_moe"),
      "model_type is 'qwen3_moe', .* use a dense Qwen2, Qwen2.5, Qwen3",
    ),
    (dict(model_type="llama", architectures=None, attention_bias=True), "attention_bias is True"),
    (dict(model_type="llama", architectures=None, mlp_bias=True), "mlp_bias is True"),
    (dict(model_type="qwen3"), "architectures is .'Qwen2ForCausalLM'., .*Qwen3ForCausalLM"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    (dict(rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.5)), "factor is 0.5"),
    (dict(rope_theta=2.0, rope_parameters=dict(rope_theta=1e4)), "rope_theta is 2.0 .* 10000.0"),
    (
      dict(rope_scaling=dict(rope_type="yarn"), rope_parameters=dict(rope_type="default")),
      "rope_type is 'yarn' .* 'default'",
    ),
    (dict(rope_parameters=dict(rope_type="llama3", rope_theta=1e4)), "factor is None"),
    (
      dict(rope_parameters=dict(LLAMA3_ROPE, rope_theta=1e4, high_freq_factor=0.5)),
      "low_freq_factor 1.0 is not below high_freq_factor 0.5",
    ),
    (dict(architectures=["Qwen2ForSequenceClassification"]), "architectures is .*Classification"),
    (dict(hidden_act="gelu"), "hidden_act is 'gelu'"),
    (dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4)), "rope_parameters is 'yarn'"),
    (dict(rope_parameters=None, rope_scaling=dict(type="linear")), "rope_scaling.* is 'linear'"),
    (dict(layer_types=["full_attention", "sliding_attention"]), "layer_types is True"),
    (dict(layer_types=["full_attention", "chunked_attention"]), "layer_types is True"),
    (dict(use_sliding_window=True, max_window_layers=1), "use_sliding_window.* is True"),
    (dict(quantization_config=dict(bits=4)), "quantization_config is {'bits': 4}"),
    (dict(num_key_value_heads=None), "num_key_value_heads is None"),
    (dict(hidden_size="48"), "hidden_size is '48'"),
    (dict(num_hidden_layers=2.5), "num_hidden_layers is 2.5"),
    (dict(rope_parameters=[1]), r"rope_parameters is \[1\]"),
    (dict(layer_types=7), "layer_types is 7"),
    (dict(use_sliding_window=True, max_window_layers="9"), "use_sliding_window.* is True"),
    (dict(num_hidden_layers=10**9), "num_hidden_layers is 1000000000, .*1000"),
    (dict(vocab_size=True), "vocab_size is True"),
    (dict(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    (dict(rope_theta=float("inf")), "rope_theta is inf"),
    (dict(head_dim=[12]), r"head_dim is \[12\]"),
    (dict(head_dim=11), "head_dim 11 is odd"),
    (dict(num_attention_heads=4096, head_dim=None), "head_dim is 0"),
    (dict(max_position_embeddings="2k"), "max_position_embeddings is '2k'"),
    (dict(tie_word_embeddings=[]), r"tie_word_embeddings is \[\]"),
    (dict(model_type=["qwen2"] * 99), r"model_type is .*\.\.\., srl_jax computes"),
    (dict(num_key_value_heads=3), "num_attention_heads 4 is not a multiple of"),
  ],
)
def test_load_config_refuses_what_is_not_computed(copy, values, message):
  folder = copy()
  edit_config(folder, **values)
  with pytest.raises(ValueError, match=message) as caught:
    weights.load_hf(folder)
  assert str(caught.value).startswith(f"{folder}/config.json: ")
  assert "\n" not in str(caught.value)


def test_load_config_accepts_an_unused_sliding_window(hf_case, copy):
  """Released Qwen2.5 checkpoints have these settings."""
  folder = copy()
  edit_config(folder, use_sliding_window=False, sliding_window=131072, max_window_layers=1)
  assert hf_files.load_config(folder).on_platform("cpu") == hf_case(CASE).config


def test_load_hf_refuses_tensors_that_do_not_fit(copy, monkeypatch):
  folder = copy()

  def spoil(tensors):
    del tensors["lm_head.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = np.ones(47, np.float32)
    tensors["model.layers.0.self_attn.k_proj.bias"] = np.ones(32, np.int8)
    tensors["model.layers.3.mlp.up_proj.weight"] = np.ones((112, 48), np.float32)

  edit_tensors(folder, spoil)
  monkeypatch.setattr(weights, "map_tensor", lambda tensor: pytest.fail("read before the check"))
  with pytest.raises(ValueError) as caught:
    weights.load_hf(folder)
  message = str(caught.value)
  assert (
    message.startswith(f"{folder}: the weights do not fit config.json: ") and "\n" not in message
  )
  for part in [
    "lm_head.weight [96, 48] is missing",
    "model.layers.1.mlp.up_proj.weight [112, 48] is missing",
    "model.norm.weight is [47], config.json makes it [48]",
    "model.layers.0.self_attn.k_proj.bias is of type I8, not one of F32, F16, BF16",
    "model.layers.3.mlp.up_proj.weight [112, 48] has no place in the model",
  ]:
    assert part in message
  assert "more" not in message


def test_load_hf_cuts_long_lists_of_faults(copy):
  folder = copy()
  edit_config(folder, num_hidden_layers=5)
  with pytest.raises(ValueError, match="14 more") as caught:
    weights.load_hf(folder)
  assert str(caught.value).count("is missing") == 10


@pytest.mark.parametrize(
  "spoil, message",
  [
    (lambda f: (f / "config.json").unlink(), "config.json: "),
    (lambda f: (f / "config.json").write_text("{"), "config.json: "),
    (lambda f: (f / "config.json").write_text('{"a": ' * 100_000), "config.json: "),
    (lambda f: (f / "config.json").write_bytes(b"\xff{}"), "config.json: "),
    (lambda f: (f / "config.json").write_text("[]"), "config.json: a JSON list"),
    (lambda f: (f / "model.safetensors").unlink(), r"no weights \(model.safetensors or"),
    (
      lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]),
      "model.safetensors: not a whole safetensors file .* ends beyond the file",
    ),
    (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "not a whole safetensors file"),
    (
      lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 99) + b"{}"),
      "not a whole safetensors file .the header is longer",
    ),
    (
      lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]"),
      "not a whole safetensors file",
    ),
  ],
)
def test_load_hf_refuses_missing_and_broken_files(copy, spoil, message):
  folder = copy()
  spoil(folder)
  with pytest.raises(ValueError, match=message) as caught:
    weights.load_hf(folder)
  assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_load_hf_names_a_missing_file_of_the_index(hf_case, tmp_path, monkeypatch):
  monkeypatch.setattr(weights, "MAX_FILE_BYTES", 100_000)
  hf = hf_case(CASE)
  weights.save_hf(hf.config, hf.model, tmp_path / "out")
  (tmp_path / "out" / "model-00002-of-00004.safetensors").unlink()
  with pytest.raises(ValueError, match="00002-of-00004.safetensors.*index.json"):
    weights.load_hf(tmp_path / "out")
  (tmp_path / "out" / "model.safetensors.index.json").write_text("[]")
  with pytest.raises(ValueError, match="index.json.*weight_map"):
    weights.load_hf(tmp_path / "out")


def test_resolve_model_finds_folders_and_hub_names(tmp_path, monkeypatch):
  assert hf_files.resolve_model(str(tmp_path)) == tmp_path
  asked = []

  def download(name, allow_patterns):
    asked.append((name, allow_patterns))
    if name != "Qwen/Qwen2.5-7B-Instruct":
      raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand so on")
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  assert hf_files.resolve_model("Qwen/Qwen2.5-7B-Instruct") == tmp_path
  assert "*.safetensors" in asked[0][1] and not any("py" in pattern for pattern in asked[0][1])
  with pytest.raises(ValueError, match="me/mine.*no connection"):
    hf_files.resolve_model("me/mine")
  with pytest.raises(ValueError, match="model ''"):
    hf_files.resolve_model("")  # not the current folder


def test_adapters_in_place_of_a_model_have_their_remedy(tmp_path):
  (tmp_path / "adapter_config.json").write_text("{}")
  with pytest.raises(ValueError, match="init_from"):
    hf_files.load_config(tmp_path)


# ---- saving ----


@pytest.mark.parametrize("case", CASES)
def test_save_hf_writes_what_transformers_loads(hf_case, their_logits, tmp_path, case):
  """transformers loads equal tensors, and computes equal logits."""
  import transformers

  hf = hf_case(case)
  weights.save_hf(hf.config, hf.model, tmp_path / "out")
  original, saved = read_all(hf.folder), read_all(tmp_path / "out")
  assert original.keys() == saved.keys()
  assert all(bits(original[name]) == bits(saved[name]) for name in saved)
  theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert type(theirs) is type(hf.theirs)
  assert not any(report.values()), report
  tokens = np.arange(1, 30)
  assert bits(their_logits(theirs, tokens)) == bits(their_logits(hf.theirs, tokens))
  config, model = weights.load_hf(tmp_path / "out")
  assert config == hf.config
  for ours, expected in zip(jax.tree.leaves(model), jax.tree.leaves(hf.model)):
    assert bits(ours) == bits(expected)


def test_save_hf_from_a_mesh_in_several_files(hf_case, tmp_path, monkeypatch):
  import torch
  import transformers

  monkeypatch.setattr(weights, "MAX_FILE_BYTES", 100_000)
  hf, out = hf_case(CASE), tmp_path / "new" / "out"
  config, model = weights.load_hf(hf.folder, sharding.make_mesh("data=2,fsdp=2,tensor=2"))
  weights.save_hf(config, model, out, dtype=jnp.bfloat16)
  files = sorted(path.name for path in out.glob("*.safetensors"))
  assert files == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
  index = json.loads((out / "model.safetensors.index.json").read_text())
  assert sorted(set(index["weight_map"].values())) == files
  assert all(name in load_file(out / file) for name, file in index["weight_map"].items())
  saved = read_all(out)
  assert index["metadata"]["total_size"] == sum(array.nbytes for array in saved.values())
  for name, array in read_all(hf.folder).items():
    assert bits(saved[name]) == bits(array.astype(ml_dtypes.bfloat16)), name
  theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
  assert theirs.dtype == torch.bfloat16
  _, again = weights.load_hf(out, dtype=jnp.bfloat16)
  assert bits(again.layers.o_proj[...]) == bits(model.layers.o_proj[...].astype(jnp.bfloat16))


def test_hf_tensors_yields_one_whole_layer_at_a_time(hf_case):
  hf = hf_case(CASE)
  mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
  config, model = weights.load_hf(hf.folder, mesh)
  seen = {}
  for name, array in weights.hf_tensors(config, model):
    assert array.sharding.is_fully_replicated and array.sharding.mesh == mesh
    seen[name] = array.shape
  assert seen == {name: tuple(x.shape) for name, x in hf.theirs.state_dict().items()}


def test_save_hf_copies_tokenizer_and_token_ids(hf_case, tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  (source / "config.json").write_text(json.dumps(dict(eos_token_id=7, pad_token_id=8, other=9)))
  kept = ["tokenizer.json", "generation_config.json", "chat_template.jinja"]
  for name in [*kept, "model.safetensors", "custom_code.py"]:
    (source / name).write_text(name)
  hf = hf_case(CASE)
  weights.save_hf(hf.config, hf.model, tmp_path / "out", source=source)
  out = {path.name for path in (tmp_path / "out").iterdir()}
  assert out == {*kept, "config.json", "model.safetensors"}
  raw = json.loads((tmp_path / "out" / "config.json").read_text())
  assert (raw["eos_token_id"], raw["pad_token_id"]) == (7, 8) and "other" not in raw


def test_save_hf_never_overwrites(hf_case, tmp_path, monkeypatch):
  hf, out = hf_case(CASE), tmp_path / "out"
  out.mkdir()
  (out / "precious.txt").write_text("mine")
  with pytest.raises(ValueError, match=f"{out}: "):
    weights.save_hf(hf.config, hf.model, out)
  assert [path.name for path in out.iterdir()] == ["precious.txt"]
  (out / "precious.txt").unlink()

  def disk_full(*args, **kwargs):
    raise OSError("no space left on device")

  with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
    patch.setattr(weights, "save_file", disk_full)
    weights.save_hf(hf.config, hf.model, out)
  assert list(tmp_path.iterdir()) == [out] and not any(out.iterdir())
  weights.save_hf(hf.config, hf.model, out)  # an empty folder will do
  assert (out / "config.json").exists()


# ---- real models ----

PEAK = """
import re, sys
import jax
from srl_jax.policy import sharding, weights
folder, dtype, spec = sys.argv[1:]
mesh = sharding.make_mesh(spec)
jax.block_until_ready(jax.numpy.zeros(3))
# Not ru_maxrss, which a new process inherits from the one that started it.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = peak()
_, model = weights.load_hf(folder, mesh if spec != "data=1" else None, dtype)
print((peak() - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(model)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["data=1", "fsdp=4,tensor=2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_hf_peak_memory_is_bounded(real_models, dtype, spec):
  """No second copy: in a fresh process the peak rises by at most 1.3 x the weights."""
  if not sys.platform.startswith("linux"):
    pytest.skip("reads the peak from /proc/self/status, which only Linux has")
  command = [sys.executable, "-c", PEAK, real_models("qwen2.5-coder-0.5b"), dtype, spec]
  root = pathlib.Path(__file__).resolve().parents[2]
  rise = float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout)
  print(f"{dtype} {spec}: peak rises by {rise:.3f} x the weights")
  assert 0.9 < rise <= 1.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_save_hf_of_real_models_writes_the_same_bits(real_models, their_logits, tmp_path, name):
  import transformers

  folder = real_models(name)
  config, model = weights.load_hf(folder)
  weights.save_hf(config, model, tmp_path / "out", dtype=jnp.bfloat16, source=folder)
  del model
  original, saved = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
  assert original.keys() == saved.keys()
  assert all(bits(original[name]) == bits(saved[name]) for name in saved)
  del original, saved
  tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("1 + 1 =")["input_ids"]
  before, after = (
    their_logits(transformers.AutoModelForCausalLM.from_pretrained(f, dtype="float32"), tokens)
    for f in (folder, tmp_path / "out")
  )
  assert bits(before) == bits(after)
