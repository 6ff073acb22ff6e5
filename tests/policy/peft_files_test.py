"""Folders of adapters: peft loads ours, we load peft's, and what does not fit is refused."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from srl_jax.errors import UserError
from srl_jax.policy import lora as L
from srl_jax.policy import peft_files
from srl_jax.policy.sharding import make_mesh

BASE = {"model": "some/model", "sha256": {"model.safetensors": "ab" * 32}}
TOKENS = np.random.default_rng(2).integers(1, 96, 12)


@pytest.fixture(scope="module")
def hf(hf_case):
  return hf_case("gqa2-untied")


@pytest.fixture(scope="module")
def adapters(hf):
  rng = np.random.default_rng(1)
  shape = L.Shape(3, 5.0, L.TARGETS["all"])
  draw = lambda leaf: jax.numpy.asarray(rng.normal(0, 0.2, leaf.shape).astype(np.float32))
  return jax.tree.map(draw, L.abstract(shape, hf.config))


@pytest.fixture
def folder(adapters, tmp_path):
  peft_files.save(adapters, tmp_path / "adapter", BASE, checksums=True)
  return tmp_path / "adapter"


def our_logits(hf, adapters):
  tokens_bt = np.asarray(TOKENS, np.int32)[None]
  rows = tokens_bt, np.arange(12)[None], np.ones_like(tokens_bt)
  model = L.join(adapters, hf.model)
  return np.asarray(model.logits(model.hidden(*rows))[0])


def test_peft_loads_our_folder(hf, adapters, folder, their_logits):
  import peft

  theirs = peft.PeftModel.from_pretrained(copy.deepcopy(hf.theirs), folder).eval()
  found = our_logits(hf, adapters)
  np.testing.assert_allclose(found, their_logits(theirs, TOKENS), rtol=0, atol=2e-5)


def test_we_load_what_peft_writes(hf, tmp_path, their_logits):
  """Another alpha, few targets, random weights; and peft's own checks of the config."""
  import peft
  import torch

  kind = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"])
  theirs = peft.get_peft_model(copy.deepcopy(hf.theirs), kind).eval()
  for name, weight in theirs.named_parameters():
    if "lora_" in name:
      torch.nn.init.normal_(weight, std=0.2)
  theirs.save_pretrained(tmp_path)
  assert peft_files.is_peft(tmp_path)
  # peft does not know the folder of a model that was made in memory.
  edit_config(tmp_path, base_model_name_or_path=str(hf.folder))
  assert peft_files.read_config(tmp_path).shape == L.Shape(2, 3.0, ("q_proj", "down_proj"))
  found = our_logits(hf, peft_files.load(tmp_path, hf.config))
  np.testing.assert_allclose(found, their_logits(theirs, TOKENS), rtol=0, atol=2e-5)


def test_what_is_saved_comes_back_on_any_mesh(hf, adapters, folder):
  found = peft_files.read_config(folder)
  assert (found.shape, found.model, found.sha256) == (adapters.shape, *BASE.values())
  with jax.set_mesh(make_mesh("data=2,fsdp=2,tensor=2")):
    loaded = peft_files.load(folder, hf.config)
    wanted = L.abstract(adapters.shape, hf.config)
  for a, b, c in zip(*map(jax.tree.leaves, (loaded, adapters, wanted))):
    np.testing.assert_array_equal(a, b)
    assert a.sharding.spec == c.sharding.spec


def edit_config(folder, **values):
  path = folder / peft_files.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | values))
  (folder / "SHA256SUMS").unlink(missing_ok=True)


@pytest.mark.parametrize(
  "values",
  [
    {"peft_type": "IA3"},
    {"use_dora": True},
    {"use_rslora": True},
    {"bias": "all"},
    {"modules_to_save": ["lm_head"]},
    {"rank_pattern": {"q_proj": 8}},
    {"target_modules": ["lm_head"]},
    {"target_modules": ".*"},
    {"target_modules": []},
    {"r": 0},
    {"r": "3"},
    {"lora_alpha": None},
    {"lora_alpha": float("inf")},
    {"lora_alpha": 10**400},
    {"target_modules": [["q_proj"]]},
    {"base_model_name_or_path": None},  # "" would be the current folder
  ],
  ids=lambda values: str(values)[:40],
)
def test_other_kinds_of_adapters_are_refused(folder, values):
  edit_config(folder, **values)
  with pytest.raises(UserError, match=next(iter(values)).replace("_", ".")):
    peft_files.read_config(folder)


@pytest.mark.parametrize(
  "sums", ["[" * 100_000, '{"sha256": {"a": {"b": 1}}}'], ids=["deep", "dict"]
)
def test_hashes_of_the_base_are_texts_or_unknown(folder, sums):
  path = folder / peft_files.WEIGHTS
  save_file(load_file(path), path, metadata={"base": sums})
  found = peft_files.read_config(folder).sha256
  assert all(isinstance(value, str) for value in found.values())


def test_a_folder_with_a_pickle_is_refused(hf, folder):
  (folder / "SHA256SUMS").unlink()
  (folder / peft_files.WEIGHTS).rename(folder / "adapter_model.bin")
  with pytest.raises(UserError, match="reads safetensors only"):
    peft_files.load(folder, hf.config)


def test_tensors_that_do_not_fit_are_refused(hf, folder):
  (folder / "SHA256SUMS").unlink()
  path = folder / peft_files.WEIGHTS
  stored = load_file(path)
  first, *rest = stored
  for changed in (
    {name: stored[name] for name in rest},
    stored | {first: stored[first][:-1]},
    stored | {"other": stored[first]},
    stored | {first: stored[first].astype(np.int32)},
  ):
    save_file(changed, path)
    with pytest.raises(UserError, match="do not fit"):
      peft_files.load(folder, hf.config)
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(UserError, match="not a whole safetensors file"):
    peft_files.load(folder, hf.config)


def test_damage_and_other_folders_are_refused(hf, adapters, folder):
  with pytest.raises(UserError, match="exists"):
    peft_files.save(adapters, folder, BASE)
  path = folder / peft_files.WEIGHTS
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match="damaged"):
    peft_files.load(folder, hf.config)
  shutil.copy(folder / peft_files.WEIGHTS, folder / peft_files.CONFIG)
  with pytest.raises(UserError, match="cannot be read"):
    peft_files.read_config(folder)
