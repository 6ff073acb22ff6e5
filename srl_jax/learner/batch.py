"""From groups to packed rows: advantages, the weight of every token in the loss, packing."""

from collections.abc import Sequence

import numpy as np

from srl_jax.learner import grpo, packing
from srl_jax.learner.dynamic_sampling import Group
from srl_jax.policy.sharding import shards


def pack_groups(groups: Sequence[Group], config, layout: str) -> list[packing.Rows]:
  """The micro-batches of one optimiser step of reinforcement learning.

  Args:
    groups: what it trains on.
    config: of the run; its groups algorithm, batch and rollout.max_tokens are read.
    layout: see packing.pack.
  """
  algorithm = config.algorithm
  advantages_bg = grpo.group_advantages(
    [group.rewards for group in groups],
    ddof=algorithm.advantage_ddof,
    scale=algorithm.advantage_scale,
  )
  packed = []
  for group, advantages_g in zip(groups, advantages_bg):
    responses = [
      packing.Response(rollout.token_ids, rollout.sampler_logprobs, float(advantage))
      for rollout, advantage in zip(group.rollouts, advantages_g)
    ]
    packed.append(packing.PackedGroup(group.prompt.token_ids, responses))
  return pack(packed, config, layout, algorithm.aggregate)


def pack(
  groups: Sequence[packing.PackedGroup], config, layout: str, aggregate: str
) -> list[packing.Rows]:
  """Micro-batches of groups, each response with the weight of its tokens in the loss.

  aggregate: see grpo.token_weights.
  """
  lengths = [len(response.token_ids) for group in groups for response in group.responses]
  weights = grpo.token_weights(np.array(lengths), aggregate, config.rollout.max_tokens)
  return packing.pack(
    groups,
    weights.tolist(),
    tokens_per_device=config.batch.tokens_per_device,
    shards=shards("b"),
    layout=layout,
  )
