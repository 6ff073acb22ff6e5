"""The batch of a step: draw prompts, sample a group for each, score it, keep what teaches.

`run` is a setup.Run.
"""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence

import numpy as np

from srl_jax import hosts
from srl_jax.data.batches import PromptQueue
from srl_jax.errors import EngineError, Stopped
from srl_jax.learner.dynamic_sampling import (
  NUMBERS,
  Batch,
  Group,
  Ticket,
  add_round,
  draw_size,
  kept_share,
  numbers_of,
  surplus_tickets,
)
from srl_jax.rollout.engine import Rollout, SamplingParams
from srl_jax.tasks import Score
from srl_jax.tasks.scoring import score_group

# Worker processes that compute the similarities of a group with long texts: difflib is quadratic,
# and the one-step reward compares whole solutions.
WORKERS = min(8, os.cpu_count() or 1)


def sampling_params(config, step: int = 0) -> SamplingParams:
  """The sampling parameters of a config at a step, which selects the random streams."""
  rollout = config.rollout
  return SamplingParams(rollout.max_tokens, rollout.temperature, seed=config.seed, step=step)


def sample_batch(run, queue: PromptQueue, step: int) -> Batch:
  """Samples rounds of groups until config.batch.prompts are kept or max_rounds times as many drawn.

  Returns the same batch on every process; its kept groups may be fewer, or none.
  """
  algorithm, size = run.config.algorithm, run.config.batch.prompts
  # Without dynamic sampling: one round, and a negative epsilon keeps every group.
  max_rounds = algorithm.max_rounds if algorithm.dynamic_sampling else 1
  epsilon = algorithm.std_epsilon if algorithm.dynamic_sampling else -1.0
  share = queue.kept if algorithm.dynamic_sampling else None
  batch = Batch()
  while drawn := draw_size(batch, size, share, max_rounds):
    groups, seconds = sample_groups(run, queue.take(drawn), step)
    batch = add_round(batch, groups, size, epsilon)
    batch = dataclasses.replace(batch, seconds_reward=batch.seconds_reward + seconds)
  # Surplus prompts are sampled again later, by the policy of that step.
  queue.put_back(surplus_tickets(batch))
  queue.note_kept(kept_share(batch))
  return batch


def sample_groups(run, tickets: Sequence[Ticket], step: int) -> tuple[list[Group], float]:
  """(A scored group for each ticket, in their order; seconds of scoring), on every process."""
  # An example that is drawn in two epochs of one step must not get the same samples twice, so the
  # prompt's id, which names its random stream, has the epoch.
  prompts, ticket_of = [], {}
  for epoch, index in tickets:
    prompt = run.train_prompts.prompt(index)
    prompts.append(dataclasses.replace(prompt, id=f"{prompt.id}@{epoch}"))
    ticket_of[prompts[-1].id] = (epoch, index)

  params = sampling_params(run.config, step)
  # Each process samples and scores a part of the groups and keeps their texts and token ids.
  own, error, seconds = {}, None, 0.0
  try:
    # The engine yields groups in the order in which they finish, so one is scored on the CPU while
    # it samples the others.
    for rollouts in run.engine.sample(prompts, run.config.rollout.samples, params):
      start = time.perf_counter()
      ticket = ticket_of[rollouts[0].prompt_id]
      own[ticket] = rollouts, score(run.config, run.train_prompts, ticket[1], rollouts)
      seconds += time.perf_counter() - start
  except (EngineError, Stopped) as ended:
    error = ended  # raised on every process by the collective below

  groups = {}
  for process, part in enumerate(hosts.all_gather_rows(_numbers(own), error)):
    for rows in part.reshape(-1, run.config.rollout.samples):
      ticket = int(rows["epoch"][0]), int(rows["index"][0])
      example, prompt = run.train_prompts.examples[ticket[1]], run.train_prompts.prompt(ticket[1])
      rollouts, scores = own.get(ticket, (None, None))
      groups[ticket] = Group(ticket, example, prompt, rows["numbers"], process, rollouts, scores)
  # The queue's order, not that of arrival: batches must not depend on timing or process count.
  return [groups[ticket] for ticket in tickets], seconds


def _numbers(own: Mapping[Ticket, tuple[Sequence[Rollout], Sequence[Score]]]) -> np.ndarray:
  """A row for each response to the prompts of this process, with the prompt's ticket."""
  row = np.dtype([("epoch", np.int32), ("index", np.int32), ("numbers", NUMBERS)])
  parts = [np.zeros(0, row)]
  for (epoch, index), (rollouts, scores) in own.items():
    parts.append(np.zeros(len(rollouts), row))
    parts[-1]["epoch"], parts[-1]["index"] = epoch, index
    parts[-1]["numbers"] = numbers_of(rollouts, scores)
  return np.concatenate(parts)


def score(config, prompts, index: int, rollouts: Sequence[Rollout]) -> list[Score]:
  """The scores of the rollouts of prompts.examples[index]."""
  return score_group(
    prompts.examples[index],
    [rollout.text for rollout in rollouts],
    [rollout.finish_reason for rollout in rollouts],
    reward=config.reward,
    think_opened=prompts.think_opened,
    workers=WORKERS,
  )
