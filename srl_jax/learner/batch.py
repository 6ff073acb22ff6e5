"""From groups of rollouts to packed rows: advantages and the weight of every token in the loss."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srl_jax.learner import grpo, packing
from srl_jax.learner.dynamic_sampling import Group
from srl_jax.learner.exchange import Elsewhere, rows_of_process
from srl_jax.learner.packing import RowShape
from srl_jax.learner.rows import PackedGroup, Response, Rows
from srl_jax.policy.sharding import shards


def weighed_groups(groups: Sequence[Group], config) -> list[PackedGroup]:
  """Returns the groups of one optimiser step with advantages and loss weights, to be packed.

  Args:
    groups: the groups that the step trains on.
    config: of the run; algorithm and rollout.max_tokens are read.
  """
  algorithm = config.algorithm
  # Advantages compare the responses of one prompt with each other, never those of two prompts.
  advantages_bg = grpo.group_advantages(
    [group.rewards for group in groups],
    ddof=algorithm.advantage_ddof,
    scale=algorithm.advantage_scale,
  )
  # A response has one advantage, which all of its tokens share.
  packed = []
  for group, advantages_g in zip(groups, advantages_bg):
    responses = []
    for (ids, logprobs), advantage in zip(tokens_of(group), advantages_g):
      responses.append(Response(ids, logprobs, float(advantage)))
    packed.append(PackedGroup(group.prompt.token_ids, responses))
  # Weights are taken before the cut into micro-batches: their normaliser is the whole step.
  return weigh(packed, algorithm.aggregate, config.rollout.max_tokens)


def tokens_of(group: Group) -> list[tuple[Sequence, Sequence]]:
  """(token ids, the sampler's log-probs) of each response; Elsewhere on other processes."""
  if group.rollouts is None:
    counts = group.numbers["tokens"].tolist()
    return [(Elsewhere(group.process, count),) * 2 for count in counts]
  return [(rollout.token_ids, rollout.sampler_logprobs) for rollout in group.rollouts]


def pack_targets(
  prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], shapes: Sequence[RowShape]
) -> list[Rows]:
  """Returns the micro-batches of one optimiser step of supervised fine-tuning, from token ids.

  Of each it returns the rows of this process's devices. Every token of the targets has the same
  weight in the loss.
  """
  # A target is packed as a group of one response; the supervised loss reads no advantages.
  packed = [
    PackedGroup(prompt, [Response(target, sampler_logprobs=None, advantage=0.0)])
    for prompt, target in zip(prompts, targets)
  ]
  return rows_of_process(packing.plan(weigh(packed, "token"), shapes, shards("b")))


def weigh(groups: Sequence[PackedGroup], aggregate: str, max_tokens: int = 0) -> list[PackedGroup]:
  """The groups with the loss weight of every response's tokens; see grpo.token_weights."""
  # Flat over all groups, because the normaliser runs over all responses of the step.
  lengths = [len(response.token_ids) for group in groups for response in group.responses]
  weights = iter(grpo.token_weights(np.array(lengths), aggregate, max_tokens).tolist())
  weighted = []
  for group in groups:
    responses = [dataclasses.replace(r, loss_weight=next(weights)) for r in group.responses]
    weighted.append(PackedGroup(group.prompt_ids, responses))
  return weighted
