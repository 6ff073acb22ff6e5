"""From groups of rollouts to packed rows: advantages and the weight of every token in the loss."""

from collections.abc import Iterator, Sequence

import numpy as np

from srl_jax.learner import grpo, packing
from srl_jax.learner.dynamic_sampling import Group
from srl_jax.learner.rows import PackedGroup, Response, Rows
from srl_jax.policy.sharding import shards


def pack_groups(groups: Sequence[Group], config, layout: str) -> list[Rows]:
  """The micro-batches of one optimiser step of reinforcement learning.

  Args:
    groups: what the step trains on.
    config: of the run; algorithm, batch and rollout.max_tokens are read.
    layout: see packing.pack.
  """
  algorithm = config.algorithm
  advantages_bg = grpo.group_advantages(
    [group.rewards for group in groups],
    ddof=algorithm.advantage_ddof,
    scale=algorithm.advantage_scale,
  )
  lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
  weights = loss_weights(lengths, algorithm.aggregate, config)
  packed = []
  for group, advantages_g in zip(groups, advantages_bg):
    responses = [
      Response(rollout.token_ids, rollout.sampler_logprobs, float(advantage), next(weights))
      for rollout, advantage in zip(group.rollouts, advantages_g)
    ]
    packed.append(PackedGroup(group.prompt.token_ids, responses))
  return pack(packed, config, layout)


def pack_targets(
  prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], config, layout: str
) -> list[Rows]:
  """The micro-batches of one optimiser step of supervised fine-tuning, from token ids.

  Every token of the targets has the same weight in the loss.
  """
  weights = loss_weights([len(target) for target in targets], "token", config)
  packed = []
  for prompt, target in zip(prompts, targets):
    response = Response(target, None, advantage=0.0, loss_weight=next(weights))
    packed.append(PackedGroup(prompt, [response]))
  return pack(packed, config, layout)


def loss_weights(lengths: Sequence[int], aggregate: str, config) -> Iterator[float]:
  """The loss weight of the tokens of each response, in order; see grpo.token_weights."""
  return iter(grpo.token_weights(np.array(lengths), aggregate, config.rollout.max_tokens).tolist())


def pack(groups: Sequence[PackedGroup], config, layout: str) -> list[Rows]:
  """Micro-batches for the mesh that is set."""
  return packing.pack(
    groups, tokens_per_device=config.batch.tokens_per_device, shards=shards("b"), layout=layout
  )
