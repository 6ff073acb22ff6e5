"""The vLLM engine against real servers: log-probs, pushes, faults.

A start takes a minute, so tests share servers (conftest.py) and their order matters: those that
need a fresh server are first, those that kill one last. vllm_run_test.py then uses server "a".
"""

import re
import resource
import shutil
import signal
import threading
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from vllm_processes import MINIATURE, eventually

from srl_jax.data import tokenizer as tokenizers
from srl_jax.errors import EngineError
from srl_jax.policy import model as policy_model
from srl_jax.policy.hf_tensors import hf_tensors
from srl_jax.policy.weights import load_hf
from srl_jax.rollout import vllm_weights
from srl_jax.rollout.engine import Prompt, SamplingParams
from srl_jax.rollout.sampler import Sampler
from srl_jax.rollout.vllm_server import Server

pytestmark = pytest.mark.slow

TINY = policy_model.ModelConfig(  # of servers "a" and "b"
  vocab_size=39,
  hidden_size=64,
  intermediate_size=128,
  num_hidden_layers=3,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=32,
  max_position_embeddings=512,
  rope_theta=1e4,
)


def random_model(seed, like=None):
  """TINY with weights of deviation 0.2, or `like` with weights moved by a fifth of theirs."""
  if like is None:
    like, scale = policy_model.init(TINY, 0), lambda x: 0.2
  else:
    scale = lambda x: 0.2 * jnp.std(x)
  leaves, tree = jax.tree.flatten(like)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return jax.tree.unflatten(
    tree, [x + scale(x) * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)]
  )


def reference_logprobs(model, cases):
  """[log-probs of the token_ids] of (prompt, token_ids) cases, by the policy's forward pass."""
  length = max(len(prompt) + len(token_ids) for prompt, token_ids in cases)
  tokens_bt = np.zeros((len(cases), length), np.int32)
  segments_bt = np.zeros_like(tokens_bt)
  for row, (prompt, token_ids) in enumerate(cases):
    tokens_bt[row, : len(prompt) + len(token_ids)] = [*prompt, *token_ids]
    segments_bt[row, : len(prompt) + len(token_ids)] = 1
  logprobs_bt = np.asarray(_next_token_logprobs(model, tokens_bt, segments_bt))
  return [
    logprobs_bt[row, len(prompt) - 1 : len(prompt) + len(token_ids) - 1]
    for row, (prompt, token_ids) in enumerate(cases)
  ]


@jax.jit
def _next_token_logprobs(model, tokens_bt, segments_bt):
  positions_bt = jnp.zeros_like(tokens_bt) + jnp.arange(tokens_bt.shape[1])
  logits_btv = model.logits(model.hidden(tokens_bt, positions_bt, segments_bt))
  next_bt1 = jnp.roll(tokens_bt, -1, axis=1)[:, :, None]
  return jnp.take_along_axis(jax.nn.log_softmax(logits_btv), next_bt1, axis=2)[:, :, 0]


def asked(count, length=160, seed=0):
  """Prompts that begin alike, for longer than a block of the prefix cache."""
  rng = np.random.default_rng(seed)
  same = rng.integers(6, 39, length - 8)
  return [Prompt(f"p{i}", (*same.tolist(), *rng.integers(6, 39, 8).tolist())) for i in range(count)]


def check_logprobs(engine, model, previous, version):
  """Samples twice, the second time with a warm cache, and compares with `model`."""
  batch = asked(6)
  of = {prompt.id: prompt.token_ids for prompt in batch}
  for _ in range(2):
    rollouts = [r for group in engine.sample(batch, 2, SamplingParams(24)) for r in group]
    assert len(rollouts) == 12
    for rollout in rollouts:
      assert rollout.weight_version == version
      stopped = rollout.token_ids[-1] in engine.stop_ids
      assert rollout.finish_reason == ("stop" if stopped else "length")
    cases = [(of[rollout.prompt_id], rollout.token_ids) for rollout in rollouts]
    served = np.concatenate([rollout.sampler_logprobs for rollout in rollouts])
    gap = lambda m: np.abs(np.concatenate(reference_logprobs(m, cases)) - served).max()  # noqa: B023
    assert gap(model) <= 1e-3
    if previous is not None:
      assert gap(previous) > 0.1, "weights of the version before fit too: nothing was shown"


def test_sample_greedy_tokens_equal_the_built_in_engines(servers, make_engine, real_models):
  folder = real_models("smollm2-135m")
  _, model = load_hf(folder)
  tokenizer = tokenizers.load_tokenizer(folder)
  stop_ids = tokenizers.stop_ids(tokenizer, folder)
  batch = [
    Prompt(f"p{i}", tuple(tokenizer.encode(f"Question {i}: what is {i} times {i + 3}? Answer:")))
    for i in range(20)
  ]
  params = SamplingParams(32, temperature=0.0)
  found = []
  for engine in (
    make_engine("real", tokenizer=tokenizer, stop_ids=stop_ids),
    Sampler(tokenizer, stop_ids, width=20),
  ):
    engine.load_weights(model, 1)
    groups = engine.sample(batch, 1, params)
    found.append({group[0].prompt_id: group[0] for group in groups})
  served, built_in = found
  assert len(served) == 20
  for id, rollout in built_in.items():
    assert served[id].token_ids == rollout.token_ids
    assert served[id].text == rollout.text
    np.testing.assert_allclose(served[id].sampler_logprobs, rollout.sampler_logprobs, atol=1e-3)


@pytest.mark.parametrize("name", ["qwen3", "real", "a"])  # "real" is used again below
def test_load_weights_three_times_keeps_logprobs_equal(servers, make_engine, name):
  engine = make_engine(name)  # an untied Qwen3, a tied Llama, an untied Qwen2
  start = None if name == "a" else load_hf(servers.models[name]())[1]
  previous = None
  for version in (1, 2, 3):
    model = random_model(version, like=start)
    engine.load_weights(model, version)
    check_logprobs(engine, model, previous, version)
    assert len(list(engine._files.path.glob("version-*"))) == 1
    previous = model
  assert engine.stats() == {}


def test_load_weights_detects_weights_that_did_not_arrive(make_engine, monkeypatch):
  engine = make_engine("a")
  engine.load_weights(random_model(1), 1)
  monkeypatch.setattr(vllm_weights, "_transfer", lambda post, folder: None)
  with pytest.raises(EngineError, match="log-probs"):
    engine.load_weights(random_model(2), 2)


def test_load_weights_detects_a_stale_prefix_cache(make_engine, monkeypatch):
  engine = make_engine("a")
  engine.load_weights(random_model(1), 1)
  real_call = Server.call

  def without_pause(self, method, path, *args, **kwargs):
    if path.startswith(("/pause", "/resume")):
      return None
    return real_call(self, method, path, *args, **kwargs)

  monkeypatch.setattr(Server, "call", without_pause)
  with pytest.raises(EngineError, match="log-probs"):
    engine.load_weights(random_model(2), 2)


@pytest.mark.parametrize(
  ("fault", "reason"),
  [
    ("shape", r"model.norm.weight is \[63\], the model has \[64\]"),
    ("missing", "model.layers.1.mlp.up_proj.weight is missing"),
    ("extra", "model.layers.7.mlp.up_proj.weight has no place in the model"),
    ("outside", "no folder with safetensors files under"),
    ("link", "no folder with safetensors files under"),
  ],
)
def test_load_weights_of_wrong_files_keeps_the_old_weights(
  make_engine, monkeypatch, tmp_path, fault, reason
):
  engine = make_engine("a")
  model = random_model(4)
  engine.load_weights(model, 4)
  bad = engine._files.path / "bad"
  bad.mkdir()
  tensors = {name: np.asarray(array) for name, array in hf_tensors(TINY, random_model(5))}
  target = bad / "0.safetensors"
  if fault == "shape":
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:63]
  elif fault == "missing":
    del tensors["model.layers.1.mlp.up_proj.weight"]
  elif fault == "extra":
    tensors["model.layers.7.mlp.up_proj.weight"] = tensors["model.norm.weight"]
  elif fault == "link":
    save_file(tensors, tmp_path / "outside.safetensors")
    target.symlink_to(tmp_path / "outside.safetensors")
  folder = "../../etc" if fault == "outside" else str(bad.relative_to(engine._files.root))
  if fault in ("shape", "missing", "extra"):
    save_file(tensors, target)
  monkeypatch.setattr(
    vllm_weights,
    "_transfer",
    lambda post, _: post("/update_weights", {"update_info": {"folder": folder}}),
  )
  with pytest.raises(EngineError, match=reason):
    engine.load_weights(random_model(5), 5)
  check_logprobs(engine, model, None, 4)
  shutil.rmtree(bad)


def test_load_weights_that_cannot_be_written_leaves_nothing(make_engine):
  engine = make_engine("a")
  model = random_model(6)
  engine.load_weights(model, 6)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # Writing fails in the middle of the first file.
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
  try:
    with pytest.raises(EngineError, match="step 7"):
      engine.load_weights(random_model(7), 7)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert [path.name for path in engine._files.path.glob("version-*")] == ["version-6"]
  check_logprobs(engine, model, None, 6)


def test_sample_of_both_engines_follows_the_distribution(make_engine):
  """At another temperature than 1: softmax(logits / temperature), and its log-probs."""
  model, temperature = random_model(7), 1.2
  prompt = asked(1, length=20)[0]
  logits_v = np.asarray(_next_token_logits(model, np.array([prompt.token_ids])))
  law = lambda t: np.asarray(jax.nn.softmax(logits_v / t)).astype(np.float64)
  params = SamplingParams(1, temperature=temperature)
  groups = 96  # of 16
  batch = [Prompt(f"p{i}", prompt.token_ids) for i in range(groups)]
  tokenizer = tokenizers.load_tokenizer(MINIATURE)
  for engine in (make_engine("a"), Sampler(tokenizer, (5,), width=256)):
    engine.load_weights(model, 7)
    rollouts = [r for group in engine.sample(batch, 16, params) for r in group]
    tokens = np.array([rollout.token_ids[0] for rollout in rollouts])
    logprobs = np.array([rollout.sampler_logprobs[0] for rollout in rollouts])
    np.testing.assert_allclose(logprobs, np.log(law(temperature))[tokens], atol=1e-3)
    counts = np.bincount(tokens, minlength=len(logits_v))
    assert _misfit(counts, law(temperature)) < 5  # deviations
    assert _misfit(counts, law(1.0)) > 5, "temperature 1 fits too: nothing was shown"


def _misfit(counts, law) -> float:
  """Pearson's chi-square above its mean, in standard deviations; rare outcomes count as one."""
  wanted = law * counts.sum()
  rare = wanted < 8
  wanted = np.append(wanted[~rare], wanted[rare].sum())
  counts = np.append(counts[~rare], counts[rare].sum())
  freedom = len(wanted) - 1
  return (((counts - wanted) ** 2 / wanted).sum() - freedom) / np.sqrt(2 * freedom)


@jax.jit
def _next_token_logits(model, tokens_bt):
  positions_bt = jnp.zeros_like(tokens_bt) + jnp.arange(tokens_bt.shape[1])
  return model.logits(model.hidden(tokens_bt, positions_bt, jnp.ones_like(tokens_bt)))[0, -1]


def test_sample_refuses_a_prompt_that_is_too_long(make_engine):
  engine = make_engine("a")
  engine.load_weights(random_model(8), 8)
  with pytest.raises(ValueError, match=r"p0 \(600 tokens\).* 400"):
    list(engine.sample(asked(1, length=600), 2, SamplingParams(8)))


def test_sample_stopped_in_the_middle_frees_the_server(servers, make_engine):
  engine = make_engine("a")
  engine.load_weights(random_model(9), 9)
  groups = engine.sample(asked(64), 4, SamplingParams(250))
  next(groups)
  groups.close()
  metrics = lambda: urllib.request.urlopen(servers["a"].url + "/metrics").read().decode()
  running = lambda: re.findall(r"(?m)^vllm:num_requests_(?:running|waiting)\{.*\} (.*)$", metrics())
  assert len(running()) == 2
  assert eventually(lambda: set(running()) == {"0.0"}, 5), running()


def test_sample_shares_the_work_and_survives_a_lost_server(servers, make_engine):
  engine = make_engine("a", "b")
  model = random_model(10)
  engine.load_weights(model, 10)
  leases = []
  lease = engine._fleet.lease
  engine._fleet.lease = lambda *args: leases.append(lease(*args)) or leases[-1]
  check_logprobs(engine, model, None, 10)
  used = [member.server.url for member in leases]
  assert {used.count(servers[name].url) for name in "ab"} == {len(used) // 2}

  engine.stats()
  # b hangs: its work goes to a. It wakes up: it gets the newest weights and is used again.
  groups = engine.sample(asked(12), 4, SamplingParams(200))
  first = threading.Timer(0.5, servers["b"].signal, (signal.SIGSTOP,))
  first.start()
  assert len({group[0].prompt_id for group in groups}) == 12
  first.join()
  assert eventually(lambda: len(engine._fleet.ready()) == 1, 60), engine.said
  newer = random_model(11)
  engine.load_weights(newer, 11)
  servers["b"].signal(signal.SIGCONT)
  assert eventually(lambda: len(engine._fleet.ready()) == 2, 60), engine.said
  check_logprobs(engine, newer, model, 11)

  # b is killed while it samples.
  kill = threading.Timer(0.5, servers["b"].signal, (signal.SIGKILL,))
  kill.start()
  groups = list(engine.sample(asked(12), 4, SamplingParams(200)))
  kill.join()
  assert {group[0].prompt_id for group in groups} == {f"p{i}" for i in range(12)}
  assert all(len(group) == 4 for group in groups)
  assert engine.stats()["groups_failed"] > 0, "b was idle when it was killed: nothing was shown"
  assert eventually(lambda: len(engine._fleet.ready()) == 1), engine.said
  assert any(f"{servers['b'].url} is lost" in line for line in engine.said)
  assert eventually(lambda: servers["b"].process.poll() is not None and not servers["b"].group())


def test_load_weights_fails_when_the_last_server_dies(
  servers, make_engine, monkeypatch, real_models
):
  engine = make_engine("real", patience=3.0)
  _, model = load_hf(real_models("smollm2-135m"))
  engine.load_weights(model, 12)
  transfer = vllm_weights._transfer

  def killed(post, folder):
    servers["real"].signal(signal.SIGKILL)
    transfer(post, folder)

  monkeypatch.setattr(vllm_weights, "_transfer", killed)
  with pytest.raises(EngineError, match="no vLLM server is left"):
    engine.load_weights(model, 13)
  with pytest.raises(EngineError, match="no vLLM server is left"):  # between
    list(engine.sample(asked(2), 2, SamplingParams(4)))
  real = servers["real"]
  assert eventually(lambda: real.process.poll() is not None and not real.group())
