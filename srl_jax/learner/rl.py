"""The reinforcement learning loop: SRL, RLVR and the one-step reward are one loop.

Each step samples groups of responses, scores them, keeps the groups with different rewards, packs
them, makes the optimiser step(s), transfers the new weights to the engine and writes the metrics.
The methods differ in their task (prompt and reward, srl_jax/tasks), never here.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from types import NoneType

from srl_jax import hosts
from srl_jax.data.batches import PromptQueue
from srl_jax.errors import EngineError, Stopped, UserError
from srl_jax.learner import metrics, packing, update, validation
from srl_jax.learner.batch import weighed_groups
from srl_jax.learner.dynamic_sampling import Batch, Group
from srl_jax.learner.exchange import rows_of_process
from srl_jax.learner.packing import MicroBatch, roomiest
from srl_jax.learner.rollouts import sample_batch
from srl_jax.learner.scores import with_logprobs
from srl_jax.policy.model import Qwen2
from srl_jax.policy.sharding import shards
from srl_jax.tasks import TASKS, task_of

MAX_LOGPROB_GAP = 1.05  # exp of the mean |trainer's - engine's log-prob| above which a run warns
MAX_EMPTY_STEPS = 10  # steps in a row without a group to train on, before a run gives up


def train(run, reference: Qwen2 | None = None) -> None:
  """Trains from run.state to the last step, with the mesh set.

  Args:
    run: the setup.Run that setup.open_run yields; its engine must have the weights of run.state.
    reference: the policy of the KL term, where config.algorithm.kl is not 0.

  Raises, after saving, Stopped on a signal and EngineError when the engine cannot continue;
  UserError when there is nothing to train on or the loss is not finite.
  """
  timers, empty_steps, figures = metrics.Timers(), 0, {}
  queue = PromptQueue(len(run.train_prompts.examples), run.config.seed, run.progress.queue)
  try:
    if run.state.step == 0 and (start := validation.validate_if_due(run)):
      run.log.step(0, start | run.compiled.take())
    with timers("sample"):
      batch = next_batch(run, queue)
    while batch is not None:
      # A resumed run draws its next batch from here.
      run.progress.queue, epoch = queue.state(), queue.epochs()
      empty_steps = 0 if batch.kept else empty_steps + 1
      check_batch(run, batch, empty_steps)
      prefetched = prefetch(run, queue)  # lag 1: sampled while this batch trains

      with timers("update"):
        run.state, outputs, plans = train_on(run, batch.kept, reference)  # dispatched
        run.log.write_rollouts(run.state.step, batch.groups)  # while the device trains
        figures = metrics.batch_metrics(batch) | {"epoch": epoch}
        figures |= metrics.update_metrics(outputs, plans, run.state.step)  # waits for the device
      with timers("sample"):
        wait_for(prefetched)  # the engine's weights change between two batches
      with timers("sync"):
        run.engine.load_weights(run.state.model, run.state.step)
      with timers("validate"):
        figures |= validation.validate_if_due(run)

      figures |= hosts.sum_counts(run.engine.stats())
      figures |= metrics.speed(run.state.model, batch, timers.take())
      figures |= run.compiled.take()
      show(run, figures)
      # Before the checkpoint: a run killed between them removes this line and repeats the step.
      run.log.step(run.state.step, figures)
      figures = {}
      with timers("save"):
        # A prefetched batch has drawn from the queue already, maybe the last of its epochs.
        run.save_if_due(is_last=not prefetched and is_finished(run, queue))
      run.stop.raise_if_any_stopped()
      with timers("sample"):
        batch = prefetched.result() if prefetched else next_batch(run, queue)
  except (Stopped, EngineError):
    if figures:  # the engine failed after an update and before its line of metrics was written
      run.log.step(run.state.step, figures)
    run.save()
    raise


# ---------------------------------------------------------------------------------- batches


def is_finished(run, queue: PromptQueue, steps_begun: int = 0) -> bool:
  """Whether there is no batch left to sample after `steps_begun` steps beyond run.state.step."""
  # train.steps, if set, overrides the epochs: the queue then starts over as often as needed.
  epochs = 0 if run.config.train.steps else run.config.train.epochs
  drawn = epochs and queue.epochs() >= epochs
  return bool(run.state.step + steps_begun >= run.steps or drawn)


def next_batch(run, queue: PromptQueue) -> Batch | None:
  """The batch of the next step, or None after the last one."""
  return None if is_finished(run, queue) else sample_batch(run, queue, run.state.step)


def prefetch(run, queue: PromptQueue) -> Future | None:
  """Begins to sample the batch of the step after this one, if rollout.lag is 1 and there is one.

  Nothing of it is in a checkpoint: a run that is killed draws the same prompts again.
  """
  if not run.config.rollout.lag or is_finished(run, queue, steps_begun=1):
    return None
  batch, step = Future(), run.state.step + 1

  def sample():
    try:
      batch.set_result(sample_batch(run, queue, step))
    except BaseException as error:  # `result` raises it in the loop's own thread
      batch.set_exception(error)

  # A daemon: unlike an executor's thread it does not hold up a process that ends with an error.
  threading.Thread(target=sample, name="prefetch", daemon=True).start()
  return batch


def wait_for(prefetched: Future | None) -> None:
  """Returns when the prefetched batch is sampled, or sampling it has ended for the run's engine.

  Any other error is raised here, before the next collective: the other processes are not in it.
  """
  if prefetched and not isinstance(prefetched.exception(), (Stopped, EngineError, NoneType)):
    prefetched.result()


def check_batch(run, batch: Batch, empty_steps: int) -> None:
  """Warns of a batch that is not full or has no well-formed response.

  Raises UserError after MAX_EMPTY_STEPS batches without a group to train on.
  """
  step, size = run.state.step + 1, run.config.batch.prompts
  failures = sum((group.failures for group in batch.groups), [])
  malformed = bool(failures) and all(failures)  # a failure is a reason, or None
  # In its first step a run shows whether its model follows the form.
  mostly = step == 1 and sum(map(bool, failures)) > len(failures) / 2
  if malformed or mostly:
    run.line.say_once("malformed", no_format(run, batch, failures))
  if empty_steps == MAX_EMPTY_STEPS:
    remedy = (
      "Lower algorithm.std_epsilon, or give data with a format that the model can follow and with"
      " steps that it does not know already"
    )
    raise UserError(
      f"step {step}: {empty_steps} steps in a row without a group to train on. "
      f"{run.workdir}/rollouts has what was sampled. "
      f"{format_remedy(run, failures) if malformed else remedy}"
    )
  if malformed and not batch.kept:
    return  # more rounds or a smaller epsilon would not help
  if len(batch.kept) < size and run.config.algorithm.dynamic_sampling:
    reasons = Counter(group.dropped or "kept" for group in batch.groups)
    reasons = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    run.line.say_once(
      "not full",
      f"step {step}: {batch.rounds} rounds gave {len(batch.kept)} groups of {size} ("
      f"{reasons}); {'training on these' if batch.kept else 'no update is made'}. "
      "algorithm.max_rounds allows more rounds, algorithm.std_epsilon drops less; from here on the "
      "live line has the number of groups",
    )


def no_format(run, batch: Batch, failures: Sequence[str | None]) -> str:
  """The warning of a batch with few or no well-formed responses: reasons, samples, remedies."""
  counts = Counter(filter(None, failures))
  reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
  lines = [
    f"warning: step {run.state.step + 1}: {len(failures) - counts.total()} of {len(failures)}"
    f" responses are well-formed ({reasons}). {run.workdir}/rollouts has all of them"
  ]
  opened = " (the prompt opens <think>)" if run.train_prompts.think_opened else ""
  # The first response of three groups, so that the samples are of different prompts. The texts of
  # other processes are not here.
  malformed = [group for group in batch.groups if group.rollouts and group.failures[0]]
  lines[0] += ", for example:" if malformed else "."
  for group in malformed[:3]:
    text, failure = group.rollouts[0].text, group.failures[0]
    shown = text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
    lines.append(f"  {group.example.id}, {failure}{opened}: {shown!r}")
  lines.append(format_remedy(run, failures))
  return "\n".join(lines)


def format_remedy(run, failures: Sequence[str | None]) -> str:
  """Returns what to change when responses miss the format, the simplest remedy first."""
  config, remedies = run.config, []
  # A response that was cut off may be well-formed with more room.
  if "cut_off" in failures:
    remedies.append(f"more room (rollout.max_tokens, now {config.rollout.max_tokens})")
  if TASKS[task_of(config.method, config.data.domain)].example:
    if not config.prompt.example:
      remedies.append("a worked answer in the prompt (prompt.example=True)")
    if not run.train_prompts.think_opened:
      remedies.append("an opened think block (prompt.open_think=True)")
    remedies.append("fine-tuning on your own problems first (configs/form_warmup.py, init_from)")
  remedies.append("an instruct model, or a system prompt worded for yours (prompt.system_file)")
  return f"Try in this order: {'; '.join(remedies)}. docs/rollouts.md compares them"


# ---------------------------------------------------------------------------------- the update


def train_on(
  run, groups: Sequence[Group], reference: Qwen2 | None
) -> tuple[update.TrainState, list[update.StepOutput], list[list[MicroBatch]]]:
  """Dispatches the optimiser step(s) of a batch; none if it has no groups. A collective.

  Returns the state of the next step, what each optimiser step computes (on the device), and the
  micro-batches of each.
  """
  loss, state, algorithm = update.loss_of(run.config), run.state, run.config.algorithm
  k = min(algorithm.steps_per_batch, len(groups))
  # Every k-th group, so that the k parts are of nearly equal size.
  parts = [weighed_groups(groups[i::k], run.config) for i in range(k)]
  # The ratios of all k steps are against the policy before the first of them, which donates it.
  old = state.model if algorithm.steps_per_batch > 1 else None
  scored = iter(
    with_logprobs(sum(parts, []), roomiest(run.row_shapes), loss, old=old, reference=reference)
  )
  parts = [[next(scored) for _ in part] for part in parts]
  plans = [packing.plan(part, run.row_shapes, shards("b")) for part in parts]
  # All rows are made before the first step is dispatched.
  packed = [rows_of_process(plan) for plan in plans]
  outputs = []
  for rows in packed:
    state, output = update.train_step(run.tx, state, list(map(update.on_device, rows)), loss)
    outputs.append(output)
  return state._replace(step=state.step + 1), outputs, plans


def show(run, figures: dict[str, float]) -> None:
  """Shows a step on the progress line; warns when trainer and engine disagree."""
  # A step without a group to train on has no log-probs to compare.
  gap = figures.get("logprob_gap_exp", 0.0)
  if gap > MAX_LOGPROB_GAP:
    run.line.say_once(
      "gap",
      f"warning: step {run.state.step}: the engine's log-probs differ from the trainer's by a "
      f"factor of {gap:.3f} a token; importance weights (algorithm.importance_cap) correct for it "
      "up to their cap. Serve in the type of config.dtype, or in float32; metrics.jsonl has "
      "logprob_gap_* for every step",
    )
  parts = {
    "reward": f"{figures['reward_mean']:.3f}",
    "kept": f"{figures['kept_share']:.0%}",
    "groups": f"{figures['groups_kept']:.0f}",
    "format failures": f"{figures['format_failures']:.1%}",
    "tokens/s": f"{figures['tokens_per_second']:,.0f}",
  }
  if "validation_accuracy" in figures:
    parts["held-out accuracy"] = f"{figures['validation_accuracy']:.0%}"
  run.line.show(run.state.step, parts)
