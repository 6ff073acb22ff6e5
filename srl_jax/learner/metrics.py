"""The numbers of a step: of its rollouts, of its update, and its speed."""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from srl_jax.learner.dynamic_sampling import Batch, kept_share
from srl_jax.learner.rows import Rows
from srl_jax.learner.update import PEAKS, StepOutput, step_metrics, update_flops
from srl_jax.policy.model import Qwen2
from srl_jax.policy.sharding import on_host
from srl_jax.rewards.spread import population_std


def batch_metrics(batch: Batch) -> dict[str, float]:
  """Metrics of the rollouts of one step: all groups that were sampled, kept or not.

  Rewards also without the format failures (reward_formed_*), because one penalty among eight
  similarities hides how far apart the others are; lengths are in tokens, monologues in words.
  kept_share is the share of groups with rewards that differ enough, surplus ones included.
  """
  scores, rollouts = [], []
  for group in batch.groups:
    scores += group.scores
    rollouts += group.rollouts
  rewards = np.array([score.reward for score in scores])
  failed = np.array([score.failure is not None for score in scores])
  # Without a well-formed response the mean of an empty array would be nan, which is no JSON.
  formed = rewards[~failed] if not failed.all() else np.zeros(1)
  lengths = np.array([len(rollout.token_ids) for rollout in rollouts])
  cut_off = np.array([rollout.finish_reason != "stop" for rollout in rollouts])
  dropped = Counter(group.dropped for group in batch.groups)
  out = {
    "reward_mean": rewards.mean(),
    "reward_std": rewards.std(),
    "reward_group_std": np.mean([population_std(group.rewards) for group in batch.groups]),
    "reward_formed_mean": formed.mean(),
    "reward_formed_std": formed.std(),
    "format_failures": failed.mean(),
    "groups_sampled": len(batch.groups),
    "groups_kept": len(batch.kept),
    "kept_share": kept_share(batch),
    "rounds": batch.rounds,
    "response_tokens_mean": lengths.mean(),
    "response_tokens_max": lengths.max(),
    "monologue_words_mean": np.mean([len(score.monologue.split()) for score in scores]),
    "action_words_mean": np.mean([len(score.action.split()) for score in scores]),
    "truncated_share": cut_off.mean(),
    "sampled_tokens": lengths.sum(),
    "seconds_reward": batch.seconds_reward,
  }
  # One key for each reason that occurred: failure_<reason>, dropped_<reason>.
  for reason, count in Counter(score.failure for score in scores).items():
    if reason:
      out[f"failure_{reason}"] = count
  for reason, count in dropped.items():
    if reason:
      out[f"dropped_{reason}"] = count
  return {name: float(value) for name, value in out.items()}


@np.errstate(all="ignore")  # update.step_metrics raises if the step went wrong
def logprob_gap(logprobs: np.ndarray, sampler_logprobs: np.ndarray) -> dict[str, float]:
  """The difference of trainer's and engine's log-probs of the sampled tokens; float32 [tokens]."""
  gap = np.abs(logprobs - sampler_logprobs)
  return {
    "logprob_gap_mean": float(gap.mean()),
    "logprob_gap_p99": float(np.quantile(gap, 0.99)),
    "logprob_gap_exp": float(np.exp(gap.mean())),
  }


class Timers:
  """Seconds of each phase of a step: `with timers("sample"): ...`."""

  def __init__(self):
    self.seconds = Counter()

  @contextlib.contextmanager
  def __call__(self, name: str):
    start = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[name] += time.perf_counter() - start

  def take(self) -> dict[str, float]:
    """seconds_<phase> since the last call."""
    out = {f"seconds_{name}": value for name, value in self.seconds.items()}
    self.seconds.clear()
    return out


def update_metrics(
  outputs: Sequence[StepOutput], micro_batches: Sequence[Sequence[Rows]], step: int
) -> dict[str, float]:
  """Waits for the optimiser steps of a batch; the means of their metrics.

  Args:
    outputs: of each optimiser step.
    micro_batches: of each optimiser step, on the host.
    step: for the error.

  Returns {} for a batch without a step. Raises UserError when a loss or a gradient is not finite.
  """
  if not outputs:
    return {}
  found = []
  for output, parts in zip(outputs, micro_batches):
    sampler, logprobs = [], []
    for part, logprobs_bs in zip(parts, output.logprobs):
      trained_bs = part.loss_weights_bs > 0
      # The engine's log-probs are compared with those of the policy that it sampled with.
      sampled_with_bs = part.old_logprobs_bs
      if sampled_with_bs is None:
        sampled_with_bs = on_host(logprobs_bs)
      logprobs.append(sampled_with_bs[trained_bs])
      sampler.append(part.sampler_logprobs_bs[trained_bs])
    # Both are flat over the trained tokens of the step, in the same order.
    gap = logprob_gap(np.concatenate(logprobs), np.concatenate(sampler))
    found.append(gap | step_metrics(output, step))
  # Over the k optimiser steps of the batch.
  means = {name: float(np.mean([step[name] for step in found])) for name in found[0]}
  return means | {"packed_share": packed_share(sum(micro_batches, []))}


def speed(model: Qwen2, batch: Batch, seconds: dict[str, float]) -> dict[str, float]:
  """Seconds of the phases, tokens per second of sampling and update together, MFU if known.

  Args:
    model: the policy.
    batch: of the step.
    seconds: {seconds_<phase>: ...}, of which sampling, update and weight transfer (sync) make up
      seconds_step. The line of a step is written before its checkpoint, so seconds_save is of the
      save before.
  """
  tokens = 0
  for group in batch.groups:
    tokens += sum(len(rollout.token_ids) for rollout in group.rollouts)
  flops = update_flops(model.config, batch.kept, frozen=model.lora is not None)
  work = 0.0
  for phase in ("sample", "update", "sync"):
    work += seconds.get(f"seconds_{phase}", 0.0)
  out = seconds | {"seconds_step": work, "tokens_per_second": tokens / max(work, 1e-9)}
  kind = jax.devices()[0].device_kind
  # The first name that is a part of device_kind; PEAKS has "TPU v5e" before "TPU v5".
  peak = next((peak for name, peak in PEAKS.items() if name in kind), None)
  if peak and flops:
    # Model FLOPs utilisation of the update alone; sampling is not counted.
    devices = jax.sharding.get_mesh().size
    out["mfu_update"] = flops / (max(seconds["seconds_update"], 1e-9) * peak * devices)
  return out


def packed_share(rows) -> float:
  """Share of the packed tokens that are not padding; rows are rows.Rows."""
  real = size = 0
  for part in rows:
    real += int((part.segments_bt > 0).sum())
    size += part.segments_bt.size
  return real / size
