"""What a run writes down: the numbers of each step and every rollout."""

import contextlib
import json
import pathlib
import time
from collections import Counter

import jax
import numpy as np

from srl_jax import folders, hosts
from srl_jax.errors import UserError
from srl_jax.learner.dynamic_sampling import Batch, Group, spread
from srl_jax.learner.flops import PEAKS


def batch_metrics(batch: Batch) -> dict[str, float]:
  """Metrics of the rollouts of one step: all groups that were sampled, kept or not.

  Rewards also without the format failures (reward_formed_*), because one penalty among eight
  similarities hides how far apart the others are; lengths are in tokens, monologues in words.
  """
  scores = [score for group in batch.groups for score in group.scores]
  rollouts = [rollout for group in batch.groups for rollout in group.rollouts]
  rewards = np.array([score.reward for score in scores])
  formed = np.array([score.reward for score in scores if not score.failure])
  lengths = np.array([len(rollout.token_ids) for rollout in rollouts])
  out = {
    "reward_mean": rewards.mean(),
    "reward_std": rewards.std(),
    "reward_group_std": np.mean([spread(group.rewards) for group in batch.groups]),
    "reward_formed_mean": formed.mean() if len(formed) else 0.0,
    "reward_formed_std": formed.std() if len(formed) else 0.0,
    "format_failures": np.mean([score.failure is not None for score in scores]),
    "groups_sampled": len(batch.groups),
    "groups_kept": len(batch.kept),
    "kept_share": np.mean([group.dropped in (None, "surplus") for group in batch.groups]),
    "rounds": batch.rounds,
    "response_tokens_mean": lengths.mean(),
    "response_tokens_max": lengths.max(),
    "monologue_words_mean": np.mean([len(score.monologue.split()) for score in scores]),
    "action_words_mean": np.mean([len(score.action.split()) for score in scores]),
    "truncated_share": np.mean([rollout.finish_reason != "stop" for rollout in rollouts]),
    "sampled_tokens": lengths.sum(),
  }
  failures = Counter(score.failure for score in scores if score.failure)
  out |= {f"failure_{reason}": count for reason, count in failures.items()}
  dropped = Counter(group.dropped for group in batch.groups if group.dropped)
  out |= {f"dropped_{reason}": count for reason, count in dropped.items()}
  return {name: float(value) for name, value in out.items()}


@np.errstate(all="ignore")  # update.step_metrics speaks up if the step went wrong
def logprob_gap(logprobs: np.ndarray, sampler_logprobs: np.ndarray) -> dict[str, float]:
  """How far trainer and engine disagree on the sampled tokens; both float32 [tokens]."""
  gap = np.abs(logprobs - sampler_logprobs)
  return {
    "logprob_gap_mean": float(gap.mean()),
    "logprob_gap_p99": float(np.quantile(gap, 0.99)),
    "logprob_gap_exp": float(np.exp(gap.mean())),
  }


def rollout_lines(groups: list[Group]) -> str:
  """One JSON line for each group, with everything needed to read it again."""
  lines = []
  for group in groups:
    line = {
      "prompt_id": group.example.id,
      "prompt_tokens": len(group.prompt.token_ids),
      "problem": group.example.problem,
      "context": group.example.context,
      "hint": group.example.hint,
      "target": group.example.target,
      "texts": [rollout.text for rollout in group.rollouts],
      "actions": [score.action for score in group.scores],
      "rewards": group.rewards,
      "failures": [score.failure for score in group.scores],
      "weight_versions": [rollout.weight_version for rollout in group.rollouts],
      "kept": group.dropped is None,
      "dropped": group.dropped,
    }
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  return "".join(lines)


class Phases:
  """Seconds of each phase of a step: `with phases("sample"): ...`."""

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


class Log:
  """The files of a run: metrics.jsonl, rollouts/, TensorBoard and, if asked for, W&B.

  Of several processes the first alone writes.

  Args:
    workdir: the run's folder.
    log: config group with tensorboard (bool) and wandb (a project's name, or "").
    step: the checkpoint's step that the run continues from; what was written after it is cut off.
    name: the run's name for W&B.
    config: shown there.
  """

  def __init__(self, workdir: pathlib.Path, log, *, step: int, name: str, config: dict):
    self.metrics = workdir / "metrics.jsonl"
    self.rollouts = workdir / "rollouts"
    self._board = self._wandb = self._untold = None
    self.compiled = 0  # programs since the last step
    jax.monitoring.register_event_duration_secs_listener(self._count)
    if not hosts.is_writer():
      return
    self.rollouts.mkdir(parents=True, exist_ok=True)
    _cut_back(self.metrics, self.rollouts, step)
    if log.tensorboard:
      from tensorboardX import SummaryWriter  # slow to import: only who logs there pays

      self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
    if log.wandb:
      try:
        import wandb  # not among the requirements: who asks for it installs it
      except ImportError as error:
        raise UserError(
          f"log.wandb: {log.wandb!r} needs the package wandb; pip install wandb, or leave it empty"
        ) from error
      self._wandb = wandb.init(project=log.wandb, name=name, config=config, resume="allow", id=name)

  def _count(self, event: str, *_, **__) -> None:
    self.compiled += event == "/jax/core/compile/backend_compile_duration"

  def write_rollouts(self, step: int, groups: list[Group]) -> None:
    """Writes down what was sampled for a step."""
    if groups and hosts.is_writer():
      path = self.rollouts / f"step_{step:06d}.jsonl"
      folders.write_text(path, rollout_lines(groups))

  def step(self, step: int, metrics: dict) -> None:
    """Writes one step's metrics, with the number of programs that were compiled in it."""
    metrics = metrics | {"programs_compiled": self.compiled}
    self.compiled = 0
    if not hosts.is_writer():
      return
    with self.metrics.open("a", encoding="utf-8") as file:
      file.write(json.dumps({"step": step} | metrics) + "\n")
    self.tell()
    self._untold = step, metrics

  def tell(self) -> None:
    """Tells TensorBoard and W&B of the last step, if that has not been done.

    It takes some milliseconds: call it while the devices work.
    """
    if not self._untold:
      return
    (step, metrics), self._untold = self._untold, None
    if self._board:
      for name, value in metrics.items():
        self._board.add_scalar(name, value, step)
    if self._wandb:
      self._wandb.log(metrics, step=step)

  def close(self) -> None:
    self.tell()
    jax.monitoring.unregister_event_duration_listener(self._count)
    if self._board:
      self._board.close()
    if self._wandb:
      self._wandb.finish()


def _cut_back(metrics: pathlib.Path, rollouts: pathlib.Path, step: int) -> None:
  """Removes what was written after `step`, a last half line included."""
  if folders.cut_to_whole_lines(metrics):
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    earlier = [line for line in lines if json.loads(line)["step"] <= step]
    folders.write_text(metrics, "".join(earlier))
  for path in rollouts.glob("step_*"):
    if path.suffix == ".partial" or int(path.stem.removeprefix("step_")) > step:
      path.unlink()


def speed(flops: float, sampled_tokens: float, seconds: dict[str, float]) -> dict[str, float]:
  """Seconds of the phases, tokens per second of sampling and update together, MFU if known.

  Args:
    flops: of the update (flops.update_flops).
  """
  work = sum(seconds.get(f"seconds_{name}", 0.0) for name in ("sample", "reward", "update", "sync"))
  out = seconds | {"seconds_step": work, "tokens_per_second": sampled_tokens / max(work, 1e-9)}
  kind = jax.devices()[0].device_kind
  peak = next((peak for name, peak in PEAKS.items() if name in kind), None)
  if peak and flops:
    devices = jax.sharding.get_mesh().size
    out["mfu_update"] = flops / (max(seconds["seconds_update"], 1e-9) * peak * devices)
  return out


def packed_share(rows) -> float:
  """Share of the packed tokens that are real ones; rows are packing.Rows."""
  real = sum(int((np.asarray(part.segments_bt) > 0).sum()) for part in rows)
  return real / sum(part.segments_bt.size for part in rows)
