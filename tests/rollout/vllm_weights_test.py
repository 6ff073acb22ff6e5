"""Weights for vLLM servers: their files, the shared folder, several trainer processes."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from vllm_client_test import CONFIG
from vllm_processes import ROOT, eventually, free_port

from srl_jax.policy import model as policy_model
from srl_jax.policy.hf_tensors import hf_batches, hf_tensors
from srl_jax.policy.sharding import make_mesh
from srl_jax.policy.weights import save_hf
from srl_jax.rollout import weights_folder
from srl_jax.rollout.weights_folder import WeightsFolder


@pytest.fixture
def folder(tmp_path):
  found = WeightsFolder(str(tmp_path))
  yield found
  found.close()
  assert not list(tmp_path.glob("srl_jax-*"))


def read(path):
  """{name: tensor} of all the files, which must not share a name."""
  parts = [load_file(file) for file in sorted(path.glob("*.safetensors"))]
  tensors = {name: tensor for part in parts for name, tensor in part.items()}
  assert len(tensors) == sum(map(len, parts))
  return tensors


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mesh", ["fsdp=8", "data=2,fsdp=2,tensor=2"])
def test_write_of_sharded_weights_holds_two_batches_at_a_time(folder, monkeypatch, tied, mesh):
  config = policy_model.ModelConfig(
    vocab_size=40,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    tie_word_embeddings=tied,
  )
  plain = policy_model.init(config, 3)
  wanted = {name: np.array(array) for name, array in hf_tensors(config, plain, "float32")}
  layer = sum(tensor.nbytes for name, tensor in wanted.items() if ".layers.0." in name)
  monkeypatch.setattr(weights_folder, "BATCH_BYTES", 2 * layer + 1)
  with jax.set_mesh(make_mesh(mesh)):
    model = jax.jit(policy_model.shard)(plain)
    del plain
    held, batches = [], hf_batches

    def watched(*args):
      here = lambda x: np.prod(x.sharding.shard_shape(x.shape), dtype=int) * x.dtype.itemsize
      for stacks in batches(*args):
        jax.block_until_ready([stack.array for stack in stacks])
        # Without the views of one device's replica, which are copied to the host.
        held.append(sum(here(x) for x in jax.live_arrays() if x.sharding.num_devices == 8))
        yield stacks

    monkeypatch.setattr(weights_folder, "hf_batches", watched)
    path = folder.root / folder.write(model, 5, "float32")
  found = read(path)
  assert found.keys() == wanted.keys()
  assert ("lm_head.weight" in found) == (not tied)
  for name, tensor in wanted.items():
    np.testing.assert_array_equal(found[name], tensor)
  files = [file.stat().st_size for file in path.glob("*.safetensors")]
  assert len(files) == 4 + 2 + (not tied)  # layers, the embedding, the norm, the head
  assert max(files) < 2 * layer + 10_000
  # Bytes on a device, beside the model: on a CPU a file's tensors are the arrays themselves.
  assert max(held) - min(held) <= 2 * 2 * layer + 1 < sum(x.nbytes for x in wanted.values()) * 0.6


def test_write_copies_the_next_batch_while_a_file_is_written(folder, monkeypatch):
  monkeypatch.setattr(weights_folder, "BATCH_BYTES", 1)
  model = policy_model.init(CONFIG, 0)
  batches = len(list(hf_batches(CONFIG, model, "bfloat16", 1)))
  on_host, save, copied, written = weights_folder._on_host, weights_folder.save_file, [], []

  def slow_save(tensors, path):
    # Without an overlap the next batch is never copied before this one is written.
    enough = min(len(written) + 2, batches)
    assert eventually(lambda: len(copied) >= enough, 20)
    save(tensors, path)
    written.append(path)

  monkeypatch.setattr(weights_folder, "save_file", slow_save)
  monkeypatch.setattr(
    weights_folder, "_on_host", lambda stacks: copied.append(found := on_host(stacks)) or found
  )
  path = folder.root / folder.write(model, 1, "bfloat16")
  assert len(written) == batches > 2
  with safe_open(written[0], framework="np") as file:
    assert file.get_slice("model.embed_tokens.weight").get_dtype() == "BF16"
  assert sorted(path.glob("*.safetensors")) == sorted(written)


@pytest.mark.parametrize("parts", [1, 2, 3, 64])
def test_divided_tensors_are_written_once_and_evenly(parts):
  config = dataclasses.replace(CONFIG, num_hidden_layers=6, vocab_size=200)
  model = policy_model.init(config, 0)
  shares = []
  for part in range(parts):
    own = {}
    for _, stacks in weights_folder.divided(hf_batches(config, model, "float32", 1), part, parts):
      for stack in stacks:
        own |= zip(stack.names, [stack.array.nbytes / len(stack.names)] * len(stack.names))
    shares.append(own)
  sizes = {name: array.nbytes for name, array in hf_tensors(config, model)}
  names = [name for own in shares for name in own]
  assert sorted(names) == sorted(sizes)
  loads = [sum(own.values()) for own in shares]
  assert sum(loads) == sum(sizes.values())
  assert max(loads) <= sum(loads) / parts + max(sizes.values())


def test_write_keeps_the_newest_weights_only(folder):
  model = policy_model.init(CONFIG, 0)
  names = [folder.write(model, version, "bfloat16") for version in (1, 2)]
  folder.keep_only(names[1])
  assert [path.name for path in folder.path.glob("version-*")] == ["version-2"]
  assert folder.path.stat().st_mode & 0o777 == 0o700


def test_root_removes_what_killed_runs_left(tmp_path):
  alive = WeightsFolder(str(tmp_path))
  killed, young = tmp_path / "srl_jax-killed", tmp_path / "srl_jax-young"
  other = tmp_path / "srl_jaxes"
  for path in (killed, young, other):
    path.mkdir()
    (path / "weights").write_text("old")
  for path in (killed, alive.path, other):
    os.utime(path, (time.time() - 61,) * 2)
  second = WeightsFolder(str(tmp_path))
  assert not killed.exists()
  assert all(path.exists() for path in (alive.path, young, other, second.path))
  alive.close(), second.close()


def old(path):
  os.utime(path, (time.time() - 61,) * 2, follow_symlinks=False)


def test_root_ignores_names_of_others(tmp_path):
  """The root may be writable by all: no file is truncated, no link followed, no fifo opened."""
  precious, root = tmp_path / "precious", tmp_path / "root"
  precious.mkdir(), root.mkdir()
  (precious / "lock").write_text("1,400 bytes")
  for name in ("lock-link", "lock-fifo", "lock-folder", "shared"):
    (root / f"srl_jax-{name}").mkdir(mode=0o700)
  (root / "srl_jax-lock-link" / "lock").symlink_to(precious / "lock")
  os.mkfifo(root / "srl_jax-lock-fifo" / "lock")
  (root / "srl_jax-lock-folder" / "lock").mkdir()
  (root / "srl_jax-shared").chmod(0o777)  # another user could replace its lock at any time
  (root / "srl_jax-link").symlink_to(precious)
  (root / "srl_jax-gone").symlink_to(tmp_path / "nothing")
  (root / "srl_jax-file").write_text("a file")
  os.mkfifo(root / "srl_jax-fifo")
  names = sorted(root.iterdir())
  for path in names:
    old(path)
  started = WeightsFolder(str(root))
  started.close()
  assert sorted(root.iterdir()) == names
  assert (precious / "lock").read_text() == "1,400 bytes"
  assert (root / "srl_jax-file").read_text() == "a file"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_keeps_folders_of_other_users(tmp_path):
  theirs, lock = tmp_path / "srl_jax-theirs", tmp_path / "srl_jax-ours" / "lock"
  theirs.mkdir(mode=0o700), lock.parent.mkdir(mode=0o700)
  lock.write_text("")
  os.chown(theirs, 12345, 12345), os.chown(lock, 12345, 12345)
  for path in (theirs, lock.parent):
    old(path)
  WeightsFolder(str(tmp_path)).close()
  assert theirs.exists() and lock.exists()


def test_root_lock_is_readable_by_its_user_only(folder):
  assert (folder.path / "lock").stat().st_mode & 0o777 == 0o600


def test_root_that_is_missing_is_refused(tmp_path):
  with pytest.raises(ValueError, match="rollout.weights_root: .*none"):
    WeightsFolder(str(tmp_path / "none"))


# ---- several trainer processes; each runs what follows "if __name__"


@pytest.mark.slow
def test_write_of_two_processes_is_one_push(tmp_path):
  model = policy_model.init(CONFIG, 3)
  save_hf(CONFIG, model, tmp_path / "model")
  port = free_port()
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
  runs = [
    subprocess.Popen(
      [sys.executable, __file__, str(port), str(index), str(tmp_path)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in (0, 1)
  ]
  try:
    said = [run.communicate(timeout=240)[0] for run in runs]
  finally:
    for run in runs:
      run.kill()
  assert [run.returncode for run in runs] == [0, 0], said
  first, second = (json.loads(text.splitlines()[-1]) for text in said)
  # Each has its own server and a part of the prompts, and all the weights arrive at both.
  assert (first["own"], second["own"]) == ("p0 p2", "p1 p3")
  # Process 0 has them all, process 1 none.
  assert (first["one set"], second["one set"]) == ("p0 p1 p2 p3", "")
  # A failure in one process ends both.
  assert "differ from the policy's" in first["not taken"]
  assert second["not taken"] == "process 0 could not push its weights; its output has the reason"
  assert "could not be written" in second["full disk"]
  assert first["full disk"] == "process 1 could not push its weights; its output has the reason"
  assert "float32 and bfloat16" in first["types"] == second["types"]
  assert not list(tmp_path.glob("root-*/*"))


def _process(port: str, index: int, folder: pathlib.Path) -> dict[str, str]:
  """The result of each case in this process."""
  import resource

  from vllm_client_test import FakeServer, Tokenizer, ask

  from srl_jax.errors import EngineError
  from srl_jax.policy.weights import load_hf
  from srl_jax.rollout.vllm_client import VllmEngine

  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
  root = folder / f"root-{index}"
  root.mkdir()
  wanted = load_file(folder / "model" / "model.safetensors")
  found = {}

  def taken(fake, path, body):
    if path == "/update_weights":
      tensors = read(root / body["update_info"]["folder"])
      assert tensors.keys() == wanted.keys()
      assert all((tensors[name] == wanted[name]).all() for name in wanted)
    return FakeServer.handle(fake, path, body)

  def engine_of(*fakes):
    urls = [fake.url for fake in fakes]
    return VllmEngine(urls, Tokenizer(), [5], weights_root=str(root), say=lambda line: None)

  def attempt(name, engine):
    try:
      engine.load_weights(model, 1)
      groups = ask(engine, count=4)
      found[name] = " ".join(sorted(group[0].prompt_id for group in groups))
    except EngineError as error:
      found[name] = str(error)
    engine.close()

  with jax.set_mesh(make_mesh("data=2,fsdp=2")):
    model = load_hf(folder / "model")[1]
    fake = FakeServer(model)
    fake.handle = lambda path, body: taken(fake, path, body)
    attempt("own", engine_of(fake))
    attempt("one set", engine_of(*[fake] * (index == 0)))
    probe = fake.probe
    if index == 0:
      fake.probe = type(probe).__new__(type(probe))
      fake.probe.logprobs = {end: logprobs - 1.0 for end, logprobs in probe.logprobs.items()}
    attempt("not taken", engine_of(fake))
    fake.probe = probe
    engine = engine_of(fake)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if index == 1:
      resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    attempt("full disk", engine)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    fake.dtype = ("torch.float32", "torch.bfloat16")[index]
    try:
      engine_of(fake)
    except ValueError as error:
      found["types"] = str(error)
  return found


if __name__ == "__main__":
  print(json.dumps(_process(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))), flush=True)
