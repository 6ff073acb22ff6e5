"""The protocol of a rollout engine: prompts of token ids in, groups of sampled responses out.

Two engines implement it: the built-in sampler (`sampler.py`) and vLLM servers (`vllm_client.py`).
The learner uses both through this protocol alone.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

from srl_jax import hosts
from srl_jax.errors import EngineError, Stopped


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt to sample for: `id` is unique in a run and gives the prompt its random stream."""

  id: str
  token_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SamplingParams:
  """Sampling parameters.

  Fields:
    max_tokens: most tokens of a response, the stop token included.
    temperature: 0 takes the most likely token. There is no top-p and no top-k: the loss assumes
      that tokens are sampled from the whole distribution.
    seed, step: with the prompt's id, the sample's index and the position they determine the random
      number of every token, so that a repeated step samples the same responses. vLLM servers ignore
      them.
  """

  max_tokens: int
  temperature: float = 1.0
  seed: int = 0
  step: int = 0


@dataclasses.dataclass(frozen=True)
class Rollout:
  """One sampled response.

  Fields:
    prompt_id: the prompt's id.
    token_ids: sampled tokens, the stop token included.
    sampler_logprobs: log-prob of each token when it was sampled, under the distribution at the
      sampling temperature (greedy: at temperature 1); natural log.
    finish_reason: "stop" (a stop token) or "length" (cut off at max_tokens).
    weight_version: the version of the weights that sampled it.
    text: the decoded tokens, special tokens left out.
  """

  prompt_id: str
  token_ids: tuple[int, ...]
  sampler_logprobs: tuple[float, ...]
  finish_reason: str
  weight_version: int
  text: str


class Engine(Protocol):
  """Samples responses from the newest weights that were loaded into it."""

  def sample(
    self, prompts: Sequence[Prompt], n: int, params: SamplingParams
  ) -> Iterator[list[Rollout]]:
    """Yields one group of n rollouts for each prompt, in the order in which they end.

    With several processes all pass the same prompts, and each receives a part of the groups.
    """

  def load_weights(self, model, version: int) -> None:
    """Samples from now on with the weights of `model` (policy.model.Qwen2), named `version`."""

  def stats(self) -> dict[str, float]:
    """Metrics of the engine since the last call, besides the rollouts."""

  def close(self) -> None:
    """Releases the engine's memory, threads and files; it cannot sample afterwards."""


def rollout_from_json(fields: dict) -> Rollout:
  """Returns the rollout of `vars(rollout)` after JSON, which turns tuples into lists."""
  tuples = {name: tuple(fields[name]) for name in ("token_ids", "sampler_logprobs")}
  return Rollout(**fields | tuples)


class ReplicatedSampling:
  """Samples with an engine and gives all groups to every process, not only their part of them.

  For validation and evaluation: every process computes their figures.
  """

  def __init__(self, engine: Engine):
    self._engine = engine

  def sample(
    self, prompts: Sequence[Prompt], n: int, params: SamplingParams
  ) -> Iterator[list[Rollout]]:
    """Yields all groups, as Engine.sample; raises an EngineError or Stopped on every process."""
    groups, error = [], None
    try:
      for group in self._engine.sample(prompts, n, params):
        groups.append([vars(rollout) for rollout in group])
    except (EngineError, Stopped) as ended:
      error = ended  # raised by the collective, on every process
    for group in hosts.all_gather_lists(groups, error):
      yield [rollout_from_json(fields) for fields in group]
