"""The numbers of a step: of its rollouts, of its update, and its speed."""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from srl_jax.learner.dynamic_sampling import Batch, kept_share
from srl_jax.learner.packing import MicroBatch
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
  numbers = np.concatenate([group.numbers for group in batch.groups])
  rewards, failed = numbers["reward"], numbers["failure"] != b""
  # Without a well-formed response the mean of an empty array would be nan, which is no JSON.
  formed = rewards[~failed] if not failed.all() else np.zeros(1)
  lengths = numbers["tokens"]
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
    "monologue_words_mean": numbers["monologue_words"].mean(),
    "action_words_mean": numbers["action_words"].mean(),
    "truncated_share": numbers["truncated"].mean(),
    "sampled_tokens": lengths.sum(),
    "seconds_reward": batch.seconds_reward,
  }
  # One key for each reason that occurred: failure_<reason>, dropped_<reason>.
  for reason, count in Counter(sum((group.failures for group in batch.groups), [])).items():
    if reason:
      out[f"failure_{reason}"] = count
  for reason, count in dropped.items():
    if reason:
      out[f"dropped_{reason}"] = count
  return {name: float(value) for name, value in out.items()}


@np.errstate(all="ignore")  # update.step_metrics raises if the step went wrong
def logprob_gap(gap: np.ndarray) -> dict[str, float]:
  """Statistics of gap [n], float32: |trainer's - engine's log-prob| of each sampled token."""
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
  outputs: Sequence[StepOutput], plans: Sequence[Sequence[MicroBatch]], step: int
) -> dict[str, float]:
  """Waits for the optimiser steps of a batch; the means of their metrics.

  Args:
    outputs: of each optimiser step.
    plans: the micro-batches of each optimiser step.
    step: for the error.

  Returns {} for a batch without a step. Raises UserError when a loss or a gradient is not finite.
  """
  if not outputs:
    return {}
  found = []
  for output in outputs:
    gaps = np.concatenate([on_host(gap_bs).ravel() for gap_bs in output.gaps])
    # Padding has -1; nan is kept, because it is a trained token's.
    found.append(logprob_gap(gaps[~(gaps < 0)]) | step_metrics(output, step))
  # Over the k optimiser steps of the batch.
  means = {name: float(np.mean([step[name] for step in found])) for name in found[0]}
  return means | {"packed_share": packed_share(sum(plans, []))}


def speed(model: Qwen2, batch: Batch, seconds: dict[str, float]) -> dict[str, float]:
  """Seconds of the phases, tokens per second of sampling and update together, MFU if known.

  Args:
    model: the policy.
    batch: of the step.
    seconds: {seconds_<phase>: ...}, of which sampling, update and weight transfer (sync) make up
      seconds_step. The line of a step is written before its checkpoint, so seconds_save is of the
      save before.
  """
  tokens = sum(int(group.numbers["tokens"].sum()) for group in batch.groups)
  lengths = [(len(g.prompt.token_ids), g.numbers["tokens"].tolist()) for g in batch.kept]
  flops = update_flops(model.config, lengths, frozen=model.lora is not None)
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


def packed_share(plan: Sequence[MicroBatch]) -> float:
  """Share of the packed tokens that are not padding."""
  size = sum(len(batch.bins) * batch.shape.tokens for batch in plan)
  return sum(batch.tokens() for batch in plan) / size
