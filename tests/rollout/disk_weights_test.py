"""Real vLLM servers before a run has given them weights; the tests of later files do."""

import numpy as np
import pytest
from vllm_real_test import asked, reference_logprobs

from srl_jax.policy.weights import load_hf
from srl_jax.rollout import vllm_weights
from srl_jax.rollout.vllm_server import Server, read_group

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["real", "a"])
def test_server_starts_with_the_weights_on_disk(servers, name):
  server = servers[name].wait()
  _, model = load_hf(servers.models[name]())
  batch = asked(3)
  how = dict(n=2, max_tokens=16, temperature=1.0, logprobs=0, ignore_eos=True)
  cases, served = [], []
  for prompt in batch:
    body = {"model": "policy", "token_ids": prompt.token_ids, "sampling_params": how}
    answer = Server(server.url).call("POST", vllm_weights.GENERATE, body, timeout=300)
    for token_ids, logprobs, _, versions in read_group(answer, 2, 16, stop_ids=()):
      assert versions == ("default",)
      cases.append((prompt.token_ids, token_ids))
      served.append(logprobs)
  wanted = reference_logprobs(model, cases)
  assert np.abs(np.concatenate(wanted) - np.concatenate(served)).max() <= 1e-3
