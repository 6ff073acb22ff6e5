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
from srl_jax.learner import metrics, optimizer, packing, start, terminal, update, validation
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
  asked = start.Asked.make(config, policy.tokenizer, examples.train)
  held_out = start.Asked.make(config, policy.tokenizer, examples.validation)
  responses = _responses(policy, asked)
  stop = start.StopSignal()
  engine = start.make_engine(config, policy, stop.check)
  solver = start.make_solver(config, policy, engine)
  log = metrics.Log(
    workdir, config.log, step=progress.step, name=workdir.name, config=config.to_dict()
  )
  bar = terminal.Line(steps)
  phases = metrics.Phases()
  begun = time.monotonic() - progress.seconds
  loss = update.Loss(kind="likelihood", chunk=config.batch.logprob_chunk, remat=config.batch.remat)
  bar.say(
    f"sft: {config.model}; {len(responses)} responses to learn, {len(held_out.examples)} held out; "
    f"{steps} steps"
  )
  if config.eval.benchmark and not progress.before:
    engine.load_weights(policy.model, progress.step)
    progress.before = validation.measure(config, solver)

  def save(score=None):
    progress.seconds = time.monotonic() - begun
    checkpoints.save(policy.model, policy.moments, progress, score)

  try:
    while progress.step < steps and not progress.done:
      chosen = batch_of(progress.step, len(responses), config.batch.prompts, config.seed)
      with phases("update"):
        rows = _pack(config, [responses[i] for i in chosen])
        policy.model, policy.moments, row, _ = update.train_step(
          policy.tx, policy.model, policy.moments, rows, loss
        )
      progress.step += 1
      score = None
      if config.train.eval_every and progress.step % config.train.eval_every == 0:
        with phases("validate"):
          engine.load_weights(policy.model, progress.step)
          found = validate(config, policy, engine, solver, held_out, loss)
        row |= found
        score = found.get(
          "validation_exact", found.get("validation_accuracy", -found.get("validation_loss", 0.0))
        )
        progress.scores[str(progress.step)] = score
        progress.done = 0 < config.train.stop_at <= found.get("validation_exact", 0.0)
      row |= phases.take()
      log.step(progress.step, row)  # before the checkpoint, see rl.train
      last = progress.done or progress.step == steps
      if score is not None or last or progress.step % config.train.save_every == 0:
        save(score)
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
  return validation.finish(config, policy, engine, solver, checkpoints, bar, begun)


def batch_of(step: int, count: int, size: int, seed: int) -> list[int]:
  """The examples of a step, a pure function of its arguments; an epoch's last one may be short."""
  epoch, position = divmod(step, math.ceil(count / size))
  return epoch_order(count, seed, epoch)[position * size : (position + 1) * size]


def _responses(policy, asked: start.Asked) -> list[packing.PackedGroup]:
  """Each prompt with the one response to learn and the token that ends it."""
  targets = [example.target for example in asked.examples]
  tokens = policy.tokenizer(targets, add_special_tokens=False)["input_ids"]
  return [
    packing.PackedGroup(prompt.token_ids, [packing.Response([*ids, policy.stop_ids[0]], None, 1.0)])
    for prompt, ids in zip(asked.prompts, tokens)
  ]


def _pack(config, groups) -> list[packing.Rows]:
  rows = packing.pack(
    groups,
    tokens_per_device=config.batch.tokens_per_device,
    shards=start.shards(),
    aggregate="token",
    max_tokens=config.rollout.max_tokens,
  )
  return [update.on_device(part) for part in rows]


def validate(config, policy, engine, solver, held_out: start.Asked, loss) -> dict:
  """Loss on the held-out responses; with a stop rule also the share answered word for word; final
  answers if eval.mode asks for them.
  """
  found = {}
  if held_out.examples:
    rows = _pack(config, _responses(policy, held_out))
    logprobs = [np.asarray(update.score(policy.model, part, loss=loss)) for part in rows]
    shares = [np.asarray(part.shares_bs) for part in rows]
    found["validation_loss"] = -float(sum((x * share).sum() for x, share in zip(logprobs, shares)))
  if config.train.stop_at:
    targets = dict(zip((p.id for p in held_out.prompts), (e.target for e in held_out.examples)))
    greedy = dataclasses.replace(start.sampling_params(config), temperature=0.0)
    found["validation_exact"] = float(
      np.mean(
        [
          group[0].text == targets[group[0].prompt_id]
          for group in engine.sample(held_out.prompts, 1, greedy)
        ]
      )
    )
  return found | validation.final_answers(config, solver, held_out)
