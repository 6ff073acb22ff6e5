"""Supervised fine-tuning on the responses of examples: the same policy, packing and checkpoints.

The loss is minus the mean log-prob of the response's tokens, its end token included; the prompt is
read and not trained.
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Sequence

import numpy as np

from srl_jax import hosts
from srl_jax.data.batches import epoch_order
from srl_jax.errors import Stopped, UserError
from srl_jax.learner import packing, start, terminal, update, validation
from srl_jax.policy.sharding import on_host, shards

STOP_WORST = 0.25


def train(config, workdir: pathlib.Path) -> dict:
  """Runs the supervised experiment of `config` in `workdir`; as rl.train.

  With train.stop_at > 0 the run ends as soon as greedy decoding answers this share of the held-out
  examples word for word, and a quarter of it (STOP_WORST) of each step number's. A mean alone
  stops at a policy that knows first steps well and the last ones never: from such a one SRL learns
  nothing there, because no rollout is better than the others.
  """
  steps_of = lambda count: config.train.epochs * math.ceil(count / config.batch.prompts)
  with start.begin(config, workdir, steps_of) as run:
    _train(config, run)
    return validation.finish(config, run)


def _train(config, run: start.Run) -> None:
  """The loop: from where run.policy.progress stands to the last step."""
  policy, phases = run.policy, run.phases
  progress, count = policy.progress, len(run.asked.examples)
  loss = update.Loss(kind="likelihood", chunk=config.batch.logprob_chunk, remat=config.batch.remat)
  run.bar.say(
    f"sft: {config.model}; {count} responses to learn, {terminal.held_out(run)}; {run.steps} steps"
  )
  if config.eval.benchmark and not progress.before:
    run.engine.load_weights(policy.model, progress.step)
    progress.before = validation.measure(config, run.solver)

  def save(score=None):
    progress.seconds = time.monotonic() - run.begun
    run.checkpoints.save(policy.model, policy.moments, progress, score)

  try:
    while progress.step < run.steps and not progress.done:
      chosen = batch_of(progress.step, count, config.batch.prompts, config.seed)
      with phases("update"):
        rows = _pack(config, policy, _responses(policy, run.asked, chosen))
        policy.model, policy.moments, row, _ = update.train_step(
          policy.tx, policy.model, policy.moments, list(map(update.on_device, rows)), loss
        )
      progress.step += 1
      score = None
      if config.train.eval_every and progress.step % config.train.eval_every == 0:
        with phases("validate"), run.stop.held():  # its line must not miss the scores
          run.engine.load_weights(policy.model, progress.step)
          found = validate(config, policy, run.solver, run.held_out, loss)
        row |= found
        score = found.get(
          "validation_exact", found.get("validation_accuracy", -found.get("validation_loss", 0.0))
        )
        progress.scores[str(progress.step)] = score
        if config.train.stop_at:
          enough = config.train.stop_at
          progress.done = found["validation_exact"] >= enough
          progress.done &= found["validation_exact_worst"] >= STOP_WORST * enough
      row |= phases.take()
      run.log.step(progress.step, row)  # before the checkpoint, see rl.py
      last = progress.done or progress.step == run.steps
      if score is not None or last or progress.step % config.train.save_every == 0:
        save(score)
      shown = {"loss": f"{row['loss']:.4f}"}
      if "validation_exact" in row:
        shown["exact"] = f"{row['validation_exact']:.1%}"
        shown["worst step"] = f"{row['validation_exact_worst']:.1%}"
      run.bar.show(progress.step, shown)
      run.stop.agree()
  except FloatingPointError as error:
    raise UserError(
      f"step {progress.step + 1}: {error}; the last checkpoint is untouched. Lower optimizer.lr"
    ) from error
  except Stopped:
    save()
    raise


def batch_of(step: int, count: int, size: int, seed: int) -> list[int]:
  """The examples of a step, a pure function of its arguments; an epoch's last one may be short."""
  epoch, position = divmod(step, math.ceil(count / size))
  return epoch_order(count, seed, epoch)[position * size : (position + 1) * size]


def _responses(policy, asked: start.Asked, chosen: Sequence[int]) -> list[packing.PackedGroup]:
  """The prompts of the chosen examples, each with its response to learn and the ending token."""
  targets = [asked.examples[i].target for i in chosen]
  tokens = policy.tokenizer(targets, add_special_tokens=False)["input_ids"]
  return [
    packing.PackedGroup(
      asked.prompt(i).token_ids, [packing.Response([*ids, policy.stop_ids[0]], None, 1.0)]
    )
    for i, ids in zip(chosen, tokens)
  ]


def _pack(config, policy, groups) -> list[packing.Rows]:
  return packing.pack(
    groups,
    tokens_per_device=config.batch.tokens_per_device,
    shards=shards("b"),
    aggregate="token",
    max_tokens=config.rollout.max_tokens,
    layout=policy.model.config.layout,
  )


def validate(config, policy, solver, held_out: start.Asked, loss) -> dict:
  """Loss on the held-out responses; with a stop rule also the share answered word for word; final
  answers if eval.mode asks for them.
  """
  found, count = {}, len(held_out.examples)
  if count:
    value = 0.0
    for rows in _pack(config, policy, _responses(policy, held_out, range(count))):
      logprobs_bs = on_host(update.score(policy.model, update.on_device(rows), loss=loss))
      value -= float((logprobs_bs * rows.loss_weights_bs).sum())
    found["validation_loss"] = value
  if config.train.stop_at:
    wanted = held_out.all_prompts()
    asked = dict(zip((p.id for p in wanted), held_out.examples))
    greedy = dataclasses.replace(start.sampling_params(config), temperature=0.0)
    groups = solver.engine.sample(wanted, 1, greedy)
    exact = {}  # by the number of steps that stand there already
    for (rollout,) in groups:
      example = asked[rollout.prompt_id]
      exact.setdefault(len(example.context), []).append(rollout.text == example.target)
    found["validation_exact"] = float(np.mean(sum(exact.values(), [])))
    found["validation_exact_worst"] = float(min(map(np.mean, exact.values())))
  return hosts.broadcast(found | validation.final_answers(config, solver, held_out))
