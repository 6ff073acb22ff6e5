"""The vLLM servers that tests share: three run at a time, each is started when a test needs it."""

import json
import os
import pathlib
import shutil

import pytest
from safetensors.numpy import load_file, save_file
from vllm_processes import MINIATURE, Running, require_server

from srl_jax.data.tokenizer import load_tokenizer
from srl_jax.policy.model import ModelConfig, init
from srl_jax.policy.weights import load_hf, save_hf
from srl_jax.rollout.vllm_client import VllmEngine


@pytest.fixture(scope="session")
def weights_root():
  """A separate root, so that a file that is left behind is noticed."""
  root = pathlib.Path("/dev/shm") / f"srl_tests_{os.getpid()}"
  root.mkdir()
  yield root
  shutil.rmtree(root)


@pytest.fixture(scope="session")
def untied(tmp_path_factory):
  """Folder of the miniature with an untied head, and 512 positions."""
  folder = tmp_path_factory.mktemp("untied") / "model"
  save_hf(*load_hf(MINIATURE), folder, source=MINIATURE)
  tensors = load_file(folder / "model.safetensors")
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  config = json.loads((folder / "config.json").read_text())
  config |= dict(tie_word_embeddings=False, max_position_embeddings=512)
  (folder / "config.json").write_text(json.dumps(config))
  return folder


MOST = 3  # servers at a time: each takes 2.4 GB of memory


class Servers(dict):
  """{name: Running}: a server is started when its name is looked up and it does not run.

  One more than MOST stops the one that was looked up the longest time ago.

  "real" has SmolLM2-135M, a tied Llama; "qwen3" a random Qwen3; "a", "b", "c" `untied`, a Qwen2;
  "lora" too, and it takes adapters up to rank 8.

  Some tests kill "b", the last one kills "a".
  """

  def __init__(self, models: dict, folder, weights_root):
    self.models, self.folder, self.weights_root = models, folder, weights_root

  def __getitem__(self, name) -> Running:
    server = self.pop(name) if name in self else self._start(name)
    self[name] = server  # last in the order
    while len(self) > MOST:
      self.pop(next(iter(self))).stop()
    return server

  def _start(self, name) -> Running:
    length = "1024" if name == "real" else "512"
    flags = [f"--max-model-len={length}"]
    flags += ["--enable-lora", "--max-lora-rank=8"] if name == "lora" else []
    return Running(self.models[name](), self.folder, self.weights_root, *flags)


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory):
  """Folder of a Qwen3 with random weights and the miniature's tokenizer."""
  folder = tmp_path_factory.mktemp("qwen3") / "model"
  config = ModelConfig(39, 64, 128, 3, 2, 1, 64, 512, model_type="qwen3", rope_theta=1e4)
  save_hf(config, init(config, 0), folder, source=MINIATURE)
  return folder


@pytest.fixture(scope="session")
def servers(tmp_path_factory, weights_root, untied, qwen3, request):
  """See Servers; a test that needs one calls its `wait` or `make_engine`."""
  require_server()
  # Where the real model cannot be built, its tests alone are skipped.
  real = lambda: request.getfixturevalue("real_models")("smollm2-135m")
  models = {"real": real, "qwen3": lambda: qwen3}
  models |= {"a": lambda: untied, "b": lambda: untied, "c": lambda: untied, "lora": lambda: untied}
  found = Servers(models, tmp_path_factory.mktemp("vllm"), weights_root)
  try:
    yield found
  finally:
    for server in found.values():
      server.stop()
    left = {name: server.group() for name, server in found.items()}
    assert not any(left.values()), f"processes left behind: {left}"
    assert not list(weights_root.iterdir()), "files left behind in the shared folder"


@pytest.fixture
def make_engine(servers, weights_root):
  """make_engine("a", "b", ...) -> engine; its printed lines are in `engine.said`."""
  engines = []

  def make(*names, tokenizer=None, stop_ids=(5,), **settings):
    said = []
    chosen = [servers[name] for name in names]  # all start before the first is waited for
    engine = VllmEngine(
      [server.wait().url for server in chosen],
      tokenizer or load_tokenizer(MINIATURE),
      stop_ids,
      weights_root=str(weights_root),
      say=said.append,
      **settings,
    )
    engine.said = said
    engines.append(engine)
    return engine

  yield make
  for engine in engines:
    engine.close()
  assert not list(weights_root.iterdir()), "files left behind in the shared folder"
