"""Supervised fine-tuning on the responses of examples: the same policy, packing and checkpoints.

The loss is minus the mean log-prob of the response's tokens, its end token included; the prompt is
read and not trained.
"""

import dataclasses
import math
import pathlib
import time

import numpy as np

from srl_jax.data.batches import epoch_order
from srl_jax.data.sources import load_examples
from srl_jax.learner import metrics, optimizer, packing, rl, start, update
from srl_jax.learner.checkpoint import Checkpoints


def train(config, workdir: pathlib.Path) -> dict:
  """Runs the supervised experiment of `config` in `workdir`; as rl.train.

  With train.stop_at > 0 the run ends as soon as the share of held-out examples that greedy decoding
  answers word for word reaches it.
  """
  examples = load_examples(config.data, method="sft", seed=config.seed)
  checkpoints = Checkpoints(workdir, config.train.keep)
  per_epoch = math.ceil(len(examples.train) / config.batch.prompts)
  steps = config.train.steps or config.train.epochs * per_epoch
  tx = optimizer.make(config.optimizer, steps)
  policy = start.load_policy(config, tx, checkpoints)
  progress = policy.progress
  asked = rl.Asked.make(config, policy.tokenizer, examples.train)
  validation = rl.Asked.make(config, policy.tokenizer, examples.validation)
  groups = [_group(policy, *pair) for pair in zip(asked.examples, asked.prompts)]
  held_out = [_group(policy, *pair) for pair in zip(validation.examples, validation.prompts)]
  engine = start.make_engine(config, policy)
  solver = start.make_solver(config, policy, engine)
  log = metrics.Log(
    workdir, config.log, step=progress.step, name=workdir.name, config=config.to_dict()
  )
  bar = metrics.Progress(steps, progress.step)
  stop = start.StopSignal()
  phases = metrics.Phases()
  begun = time.monotonic() - progress.seconds
  loss = update.Loss(kind="likelihood", chunk=config.batch.logprob_chunk, remat=config.batch.remat)
  ended = False
  bar.say(
    f"sft: {config.model}, {len(groups)} responses to learn and {len(held_out)} held out; "
    f"{steps} steps"
  )
  if config.eval.benchmark and not progress.before:
    engine.load_weights(policy.model, progress.step)
    progress.before = rl.measure(config, solver)

  def save(score=None):
    progress.seconds = time.monotonic() - begun
    checkpoints.save(policy.model, policy.moments, progress, score)

  try:
    while progress.step < steps and not ended:
      chosen = batch_of(progress.step, len(groups), config.batch.prompts, config.seed)
      with phases("update"):
        rows = _pack(config, [groups[i] for i in chosen])
        policy.model, policy.moments, row, _ = update.train_step(
          policy.tx, policy.model, policy.moments, rows, loss
        )
      progress.step += 1
      score = None
      if config.train.eval_every and progress.step % config.train.eval_every == 0:
        with phases("validate"):
          engine.load_weights(policy.model, progress.step)
          row |= validate(config, policy, engine, solver, validation, held_out, loss)
        score = row.get("validation_accuracy", -row.get("validation_loss", 0.0))
        progress.scores[str(progress.step)] = score
        ended = 0 < config.train.stop_at <= row.get("validation_exact", 0.0)
      if (
        score is not None or progress.step == steps or progress.step % config.train.save_every == 0
      ):
        save(score)
      row |= phases.take()
      log.step(progress.step, row)
      shown = {"loss": f"{row['loss']:.4f}"}
      if "validation_exact" in row:
        shown["exact"] = f"{row['validation_exact']:.1%}"
      bar.show(progress.step, shown)
      stop.check()
  except FloatingPointError as error:
    raise ValueError(
      f"step {progress.step + 1}: {error}; the last checkpoint is untouched. Lower optimizer.lr"
    ) from error
  except start.Stopped:
    save()
    raise
  finally:
    stop.restore()
    log.close()
  return rl.finish(config, policy, engine, solver, checkpoints, bar, begun)


def batch_of(step: int, count: int, size: int, seed: int) -> list[int]:
  """The examples of a step, a pure function of its arguments; an epoch's last one may be short."""
  epoch, position = divmod(step, math.ceil(count / size))
  return epoch_order(count, seed, epoch)[position * size : (position + 1) * size]


def _group(policy, example, prompt) -> packing.PackedGroup:
  """The prompt and the one response to learn, with the token that ends it."""
  ids = policy.tokenizer(example.target, add_special_tokens=False)["input_ids"]
  return packing.PackedGroup(
    prompt.token_ids, [packing.Response([*ids, policy.stop_ids[0]], None, 1.0)]
  )


def _pack(config, groups) -> list[packing.Rows]:
  rows = packing.pack(
    groups,
    tokens_per_device=config.batch.tokens_per_device,
    shards=rl.shards(),
    aggregate="token",
    max_tokens=config.rollout.max_tokens,
  )
  return [update.on_device(part) for part in rows]


def validate(config, policy, engine, solver, validation, held_out, loss) -> dict:
  """Held-out loss; exact matches if there is a stop rule; accuracy if eval.mode asks for it."""
  found = {}
  if held_out:
    rows = _pack(config, held_out)
    total = sum(
      float((np.asarray(update.score(policy.model, part, loss=loss)) * part.shares_bs).sum())
      for part in rows
    )
    found["validation_loss"] = -total
  if config.train.stop_at:
    targets = dict(zip((p.id for p in validation.prompts), (e.target for e in validation.examples)))
    params = dataclasses.replace(start.sampling_params(config), temperature=0.0)
    exact = [
      group[0].text == targets[group[0].prompt_id]
      for group in engine.sample(validation.prompts, 1, params)
    ]
    found["validation_exact"] = float(np.mean(exact))
  tasks = rl.held_out_tasks(validation.examples) if config.eval.mode != "off" else []
  if tasks:
    found["validation_accuracy"] = rl.math_benchmarks.accuracy(solver, tasks)
  return found
