"""Supervised fine-tuning on the targets of examples, with the same policy, packing, checkpoints.

The loss is minus the mean log-prob of the target's tokens, its end token included; the prompt is
not trained.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from srl_jax import hosts
from srl_jax.data.batches import epoch_order
from srl_jax.errors import EngineError, Stopped
from srl_jax.learner import metrics, update, validation
from srl_jax.learner.batch import pack_targets
from srl_jax.learner.packing import RowShape, roomiest
from srl_jax.learner.rollouts import sampling_params
from srl_jax.learner.rows import Rows
from srl_jax.policy.sharding import on_host

STOP_WORST = 0.25  # share of train.stop_at that the worst step number must reach; see train


def train(run) -> None:
  """Trains from run.state to the last step; as rl.train.

  With train.stop_at > 0 the run ends as soon as greedy decoding reproduces this share of the
  held-out targets word for word, and at each step number a quarter of this share (STOP_WORST). A
  mean alone would accept a policy that is right at first steps and always wrong at last ones. SRL
  could not improve it there, because all rollouts of such a step have the same reward.
  """
  config, timers, loss = run.config, metrics.Timers(), update.loss_of(run.config)
  figures = {}
  try:
    if run.state.step == 0 and (start := validate_if_due(run, loss)):
      run.log.step(0, start | run.compiled.take())
    while run.state.step < run.steps and not run.progress.done:
      chosen = batch_of(
        run.state.step, len(run.train_prompts.examples), config.batch.prompts, config.seed
      )
      # A batch is a function of the step, so a resumed run needs no queue to continue exactly.
      with timers("update"):
        rows = pack_examples(run, run.train_prompts, chosen, run.row_shapes)
        micro_batches = list(map(update.on_device, rows))
        state, output = update.train_step(run.tx, run.state, micro_batches, loss)
        run.state = state._replace(step=state.step + 1)
        figures = update.step_metrics(output, run.state.step)
      with timers("validate"):
        figures |= validate_if_due(run, loss)

      figures |= timers.take() | run.compiled.take()
      show(run, figures)
      run.log.step(run.state.step, figures)  # before the checkpoint, see rl.py
      figures = {}
      run.save_if_due(is_last=run.progress.done or run.state.step == run.steps)
      run.stop.raise_if_any_stopped()
  except (Stopped, EngineError):
    if figures:  # the engine failed in the validation, before the line of metrics was written
      run.log.step(run.state.step, figures)
    run.save()
    raise


def batch_of(step: int, count: int, size: int, seed: int) -> list[int]:
  """Returns the examples of a step by their indices; the last batch of an epoch may be short."""
  epoch, position = divmod(step, math.ceil(count / size))
  return epoch_order(count, seed, epoch)[position * size : (position + 1) * size]


def pack_examples(run, prompts, chosen: Sequence[int], shapes: Sequence[RowShape]) -> list[Rows]:
  """The micro-batches of the chosen examples: each prompt with its target and the end token."""
  prompt_ids, targets = [], []
  for i in chosen:
    target = run.tokenizer(prompts.target(i), add_special_tokens=False)["input_ids"]
    prompt_ids.append(prompts.prompt(i).token_ids)
    targets.append([*target, run.stop_ids[0]])
  return pack_targets(prompt_ids, targets, shapes)


def validate_if_due(run, loss: update.Loss) -> dict[str, float]:
  """Every train.eval_every steps: the loss of the held-out targets; final answers if eval.mode is
  not off; with a stop rule also the share of exact responses. Sets run.progress.scores and done.
  """
  if not run.is_due(run.config.train.eval_every):
    return {}
  with run.stop.held():  # a stop is delayed until the metrics of this step have the scores
    run.engine.load_weights(run.state.model, run.state.step)
    found = {"validation_loss": held_out_loss(run, loss)} if run.held_out.examples else {}
    if run.config.train.stop_at:
      found |= exact_shares(run)
    found = hosts.broadcast(found | validation.final_answers(run))
  # The best checkpoint is chosen by exact responses, else by final answers, else by the loss.
  score = -found.get("validation_loss", 0.0)
  score = found.get("validation_exact", found.get("validation_accuracy", score))
  run.progress.scores[str(run.state.step)] = score
  enough = run.config.train.stop_at
  if enough:
    worst = found["validation_exact_worst"]
    run.progress.done = found["validation_exact"] >= enough and worst >= STOP_WORST * enough
  return found


def held_out_loss(run, loss: update.Loss) -> float:
  """Minus the mean log-prob of the held-out targets' tokens."""
  value = 0.0
  all_of_them = range(len(run.held_out.examples))
  # One shape for all, because each shape is a program to compile (programs.update_calls). Weights
  # of `pack_examples` are 1 / all target tokens, so the sum below is a mean.
  for rows in pack_examples(run, run.held_out, all_of_them, [roomiest(run.row_shapes)]):
    rows = update.on_device(rows)
    logprobs_bs = on_host(update.logprobs_of(run.state.model, rows, loss=loss))
    value -= float((logprobs_bs * on_host(rows.loss_weights_bs)).sum())
  return value


def exact_shares(run) -> dict[str, float]:
  """The share of held-out targets that greedy decoding gives word for word, of all of them and of
  the step number at which it is worst.
  """
  prompts = run.held_out.all_prompts()
  index_of = {prompt.id: i for i, prompt in enumerate(prompts)}
  greedy = dataclasses.replace(sampling_params(run.config), temperature=0.0)
  exact = collections.defaultdict(list)  # by the number of steps before the target
  for (rollout,) in run.solver.engine.sample(prompts, 1, greedy):
    index = index_of[rollout.prompt_id]
    steps_before = len(run.held_out.examples[index].context)
    exact[steps_before].append(rollout.text == run.held_out.target(index))
  return {
    "validation_exact": float(np.mean(sum(exact.values(), []))),
    "validation_exact_worst": float(min(map(np.mean, exact.values()))),
  }


def show(run, figures: dict[str, float]) -> None:
  """Shows a step on the progress line."""
  parts = {"loss": f"{figures['loss']:.4f}"}
  if "validation_exact" in figures:
    parts["exact"] = f"{figures['validation_exact']:.1%}"
    parts["worst step"] = f"{figures['validation_exact_worst']:.1%}"
  run.line.show(run.state.step, parts)
