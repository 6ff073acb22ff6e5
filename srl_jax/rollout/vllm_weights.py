"""New weights for running vLLM servers: the server's update from files, and a check.

HTTP 200 proves nothing here: a server can take an update and keep using old weights, half of the
new ones, or a cache that the old ones filled. So every push ends with `Probe.check`, and nothing is
sampled from a server that fails it.

Of a policy with adapters only those travel, under a new name and from a new folder in each push:
vLLM keys its cache of prefixes by both, so that no key or value of older adapters is used.
"""

import functools
import pathlib
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srl_jax.errors import EngineError
from srl_jax.policy.model import Qwen2
from srl_jax.policy.sharding import put, reshard, shards
from srl_jax.rollout.vllm_server import Server, ServerError
from srl_jax.rollout.weights_folder import WHOLE

PUSH_SECONDS = 600.0
PROBE_SECONDS = 300.0  # a server's first request compiles
PROBE_TOKENS = 160  # more than a block of any prefix cache, so that a stale one shows
PROBE_TOP = 20  # log-probs that a server gives for one place, at most
TOLERANCE = {"float32": ("max", 1e-3), "bfloat16": ("mean", 0.1)}  # twice what was ever measured
PARSING = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
GENERATE = "/inference/v1/generate"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of vLLM's --max-lora-rank


class Served(NamedTuple):
  """What a server samples from since its last push.

  Fields: model, the name in requests and answers, WHOLE or that of adapters; version, of the
  policy; label, of the server's own weights in answers.
  """

  model: str
  version: int
  label: str

  def versions(self, model, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The policy's versions that sampled an answer of `model` with these labels.

    Of adapters it is that of their name, as long as the weights beside them are those of the push.
    """
    if self.model == WHOLE:
      return labels
    same = model == self.model and set(labels) == {self.label}
    return (str(self.version),) if same else (f"{model} beside {', '.join(labels)}",)


def served_rank(rank: int) -> int:
  """The --max-lora-rank of a server for adapters of this rank."""
  return next((value for value in RANKS if value >= rank), RANKS[-1])


def push(server: Server, folder: str, version: int, owner: threading.Event | None = None) -> Served:
  """Gives a server the weights in `folder` under the name `version`, and empties its caches.

  Requests in flight are aborted; the server refuses to sample from half-changed weights. `owner` is
  that of Server.call.

  Raises ServerError; the server may be paused then, or keep its old weights and version.
  """
  post = functools.partial(server.call, "POST", timeout=PUSH_SECONDS, owner=owner)
  # These two change nothing that is sampled, so they precede the pause.
  post("/init_weight_transfer_engine", {"init_info": {}})
  try:
    post("/start_weight_update")
  except ServerError:  # a run that was killed during its update left it open
    post("/finish_weight_update", {})
    post("/start_weight_update")
  # The prefix cache has keys and values of the old weights, so it is cleared.
  post("/pause?mode=abort&clear_cache=true")
  _transfer(post, folder)
  post("/finish_weight_update", {"weight_version": str(version)})
  post("/resume")
  return Served(WHOLE, version, str(version))


def push_adapters(
  server: Server,
  folder: pathlib.Path,
  version: int,
  before: Served | None,
  owner: threading.Event | None = None,
) -> Served:
  """Gives a server the adapters in `folder` and takes those of `before` from it.

  Its own weights stay, so that nothing is paused; requests that sample from the old adapters end.

  Raises ServerError.
  """
  call = functools.partial(server.call, timeout=PUSH_SECONDS, owner=owner)
  name = f"policy-{version}"
  # A run that was killed may have left adapters of this name. With vLLM's load_inplace the server
  # would read the files again for every token.
  _unload(call, name)
  try:
    call("POST", LOAD, {"lora_name": name, "lora_path": str(folder)}, is_json=False)
  except ServerError as error:
    if error.status == 404:
      raise ServerError(
        f"{error}. The server has to see that folder, and to be started with --enable-lora by "
        "launch/vllm_server.sh, which allows to load adapters"
      ) from error
    raise
  if before and before.model not in (WHOLE, name):
    _unload(call, before.model)
  found = call("GET", "/weight_info")
  label = found.get("weight_version") if isinstance(found, dict) else None
  return Served(name, version, str(label)[:100])


def _unload(call, name: str) -> None:
  """Takes adapters from a server; it may have none of that name."""
  try:
    call("POST", UNLOAD, {"lora_name": name}, is_json=False)
  except ServerError as error:
    if error.status != 404:
      raise


def _transfer(post, folder: str) -> None:
  """The transport: returns when the server has loaded the weights. NCCL would go here."""
  post("/update_weights", {"update_info": {"folder": folder}})


class Probe:
  """Log-probs at the ends of fixed prompts under some weights, by the policy's own forward pass.

  The prompts are the beginnings of one fixed row of tokens, from 2 tokens up to PROBE_TOKENS.

  Args:
    model: the policy; call it with the mesh set.
    version: of its weights.
    max_length: tokens that the servers take, prompt and one more.
  """

  def __init__(self, model: Qwen2, version: int, max_length: int):
    self.version = version
    config = model.config
    # One token is sampled after the prompt. The prompt is fixed and spread over the vocabulary.
    length = min(PROBE_TOKENS, max_length - 1, config.max_position_embeddings - 1)
    self.tokens = [(31 * i * i + 17) % config.vocab_size for i in range(length)]
    self.ends = tuple(sorted({2, max(2, length // 4), length}))
    tokens_bt = put(np.tile(np.array(self.tokens, np.int32), (shards("b"), 1)), "bt")
    logprobs_ev = np.asarray(_logprobs_at(model, tokens_bt, self.ends))
    self.logprobs = dict(zip(self.ends, logprobs_ev))

  def check(
    self, server: Server, served: Served, dtype: str, owner: threading.Event | None = None
  ) -> float:
    """The largest difference between the server's log-probs and the policy's.

    Args:
      served: what the push has given the server.
      dtype: the less precise of the types that server and policy compute in.
      owner: that of Server.call.

    Raises EngineError when they differ by more than TOLERANCE, or the server names another version;
    ServerError when it does not answer, or without the log-probs of the most likely tokens.
    """
    gaps = np.concatenate([self._gaps(server, served, end, owner) for end in self.ends])
    measure, limit = TOLERANCE[dtype]
    found = float(getattr(np, measure)(gaps))
    if not found <= limit:  # also when it is nan
      raise EngineError(
        f"{server.url}: after the push of step {self.version} its log-probs differ from the "
        f"policy's by {found:.2g} ({measure} of {len(gaps)}; {dtype} allows {limit:g}). It does "
        "not hold the policy's weights, or computes another model; nothing was sampled from it"
      )
    return float(gaps.max())

  def _gaps(
    self, server: Server, served: Served, end: int, owner: threading.Event | None
  ) -> np.ndarray:
    """|server - policy| of the log-probs of the most likely tokens after the first `end` tokens."""
    params = dict(max_tokens=1, temperature=1.0, top_p=1.0, top_k=0, logprobs=PROBE_TOP)
    body = {"model": served.model, "token_ids": self.tokens[:end], "sampling_params": params}
    answer = server.call("POST", GENERATE, body, timeout=PROBE_SECONDS, owner=owner)
    try:
      (choice,) = answer["choices"]
      label = str(choice["weight_versions"][0]["version"])[:100]
      versions = served.versions(str(answer.get("model"))[:100], (label,))
      found = {}
      for entry in choice["logprobs"]["content"][0]["top_logprobs"]:
        found[entry["token_id"]] = entry["logprob"]
      expected_v = self.logprobs[end]
      if not all(type(id) is int and 0 <= id < len(expected_v) for id in found):
        raise ValueError("a token beyond the vocabulary")
      if not all(type(logprob) in (int, float) for logprob in found.values()):
        raise ValueError("a log-prob that is no number")
      if len(found) < min(PROBE_TOP, len(expected_v)):
        raise ValueError(f"{len(found)} log-probs")
      gaps = np.abs(np.array(list(found.values()), np.float64) - expected_v[list(found)])
    except PARSING as error:
      reason = repr(error)[:200]
      raise ServerError(f"{server.url}{GENERATE}: answer not understood ({reason})") from error
    if versions != (str(self.version),):
      raise EngineError(
        f"{server.url}: samples with weights {versions[0]!r} after the push of step {self.version};"
        " is another run pushing to the same server?"
      )
    return gaps


@functools.partial(jax.jit, static_argnames="ends")
def _logprobs_at(model, tokens_bt, ends):
  """logprobs_ev after the first `ends` tokens, of the first of the equal rows tokens_bt."""
  positions_bt = jnp.zeros_like(tokens_bt) + jnp.arange(tokens_bt.shape[1])
  hidden_btd = model.hidden(tokens_bt, positions_bt, jnp.ones_like(tokens_bt))
  # Only the last token of each beginning needs logits.
  hidden_bed = jnp.stack([hidden_btd[:, end - 1] for end in ends], axis=1)
  logits_bev = reshard(model.logits(hidden_bed), jax.P())
  return jax.nn.log_softmax(logits_bev[0], axis=-1)
