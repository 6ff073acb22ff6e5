"""The reinforcement learning loop: SRL, RLVR and the one-step reward are one loop.

Each step: draw prompts, sample groups, score them, keep those that teach (dynamic_sampling), pack
them, make the optimiser step(s), give the new weights to the engine, write down what happened. The
three methods differ in the example's prompt and in its reward, never here.
"""

import dataclasses
import functools
import gc
import pathlib
import time
from collections.abc import Callable

import numpy as np

from srl_jax import hosts
from srl_jax.data.batches import PromptQueue
from srl_jax.errors import EngineError, Stopped, UserError
from srl_jax.learner import (
  grpo,
  metrics,
  overlap,
  packing,
  start,
  terminal,
  update,
  validation,
)
from srl_jax.learner.dynamic_sampling import Batch, Group, fill_batch
from srl_jax.learner.flops import update_flops
from srl_jax.policy.sharding import on_host, shards
from srl_jax.rollout.engine import rollout_from_json
from srl_jax.tasks import Score

FAR_APART = 1.05  # exp of the mean |log-prob of trainer - of engine| beyond which the run warns
MAX_EMPTY_STEPS = 10  # steps in a row without one group to train on, before the run gives up


def train(config, workdir: pathlib.Path) -> dict:
  """Runs the experiment of `config` in `workdir`, from its last checkpoint if it has one.

  Call it with the mesh set. Returns the summary (the final table as data). Raises, after saving,
  Stopped when a signal asks the run to stop and EngineError when the engine cannot go on;
  UserError on bad input.
  """
  steps_of = lambda count: -(-config.train.epochs * count // config.batch.prompts)
  with start.begin(config, workdir, steps_of, config.algorithm.steps_per_batch) as run:
    _train(config, run)
    return validation.finish(config, run)


def _train(config, run: start.Run) -> None:
  """The loop: from where run.policy.progress stands to the last step."""
  policy, engine, phases = run.policy, run.engine, run.phases
  progress = policy.progress
  reference = start.load_weights(config, policy.folder) if config.algorithm.kl else None
  queue = PromptQueue(len(run.asked.examples), config.seed)
  if progress.queue:
    queue.restore(progress.queue)
  lag = config.rollout.lag
  # What is scored while another batch trains costs the run no time of its own.
  scoring = metrics.Phases() if lag else phases
  sample = functools.partial(sample_batch, config, run, queue, scoring)
  ahead = overlap.Ahead(sample, queue, _sampled_before(config, run))
  begins_at, empty = progress.step, 0

  def save(score=None):
    with phases("save"):
      progress.ahead = ahead.settle()
      progress.queue, progress.seconds = queue.state(), time.monotonic() - run.begun
      run.checkpoints.save(policy.model, policy.moments, progress, score)

  def drawn():
    return not config.train.steps and queue.epochs() >= config.train.epochs

  def done():
    return progress.step >= run.steps or (drawn() and not ahead.pending)

  run.bar.say(terminal.opening(config, run))
  engine.load_weights(policy.model, progress.step)
  if config.eval.benchmark and not progress.before:
    run.bar.say(f"measuring the untrained model on {config.eval.benchmark} ...")
    progress.before = validation.measure(config, run.solver)
  try:
    while not done():
      step = progress.step
      with phases("sample"):
        batch = ahead.take(step)
      if lag and step + 1 < run.steps and not drawn():
        ahead.begin(step + 1)
      phases.seconds["sample"] -= phases.seconds["reward"]
      empty = 0 if batch.kept else empty + 1
      if empty == MAX_EMPTY_STEPS:
        raise UserError(
          f"step {step + 1}: {empty} steps in a row without a group to train on. "
          f"{run.workdir}/rollouts tells what was sampled. Lower algorithm.std_epsilon, or give "
          "data whose format the model can follow and whose steps it does not know already"
        )
      if len(batch.kept) < config.batch.prompts and config.algorithm.dynamic_sampling:
        run.bar.say_once("short", terminal.not_full(step, batch, config.batch.prompts))
      with phases("update"):
        results = train_on(config, policy, batch, reference, step) if batch.kept else None
        # While the device makes the step, the host writes it down and reads the next prompts.
        row = metrics.batch_metrics(batch)
        run.log.write_rollouts(step + 1, batch.groups)
        run.log.tell()
        for _, index in queue.coming(2 * config.batch.prompts) if not lag else ():
          run.asked.prompt(index)
        flops = update_flops(policy.model.config, batch.kept)
        del batch  # of thousands of numbers: freed now, while the device works
        row |= results() if results else {}
      if row.get("logprob_gap_exp", 0.0) > FAR_APART:
        run.bar.say_once("apart", terminal.far_apart(step, row["logprob_gap_exp"]))
      progress.step += 1
      with phases("sync"):
        ahead.wait()  # a batch is sampled by one version
        engine.load_weights(policy.model, progress.step)
      score = None
      if config.train.eval_every and progress.step % config.train.eval_every == 0:
        with phases("validate"), run.stop.held():  # its line must not miss the scores
          found = validation.validate(config, run.solver, run.held_out)
        row |= found
        score = found.get("validation_accuracy", found.get("validation_reward"))
        if score is not None:
          progress.scores[str(progress.step)] = score
      row |= hosts.sum_counts(engine.stats())
      row |= metrics.speed(flops, row["sampled_tokens"], phases.take())
      row["epoch"] = queue.epochs()
      # Before the checkpoint: a run killed between the two cuts this line off and does the step
      # again. So the seconds of saving stand in the next line.
      run.log.step(progress.step, row)
      if progress.step == begins_at + 1:
        gc.freeze()  # what the first step compiled too (see start.begin)
      if score is not None or progress.step % config.train.save_every == 0 or done():
        save(score)
      run.bar.show(progress.step, terminal.parts_of(row))
      run.stop.agree()
  except (Stopped, EngineError):
    save()  # prompts of a batch that was not finished are drawn again
    raise


def sample_batch(config, run: start.Run, queue, phases, step: int) -> Batch:
  """The batch of a step: sampled, scored and filtered, the same on every process."""
  params, asked = start.sampling_params(config, step), run.asked

  def sample(tickets) -> list[Group]:
    # An example that comes twice in one step, in two epochs, must not get the same samples.
    wanted = {}
    for epoch, index in tickets:
      prompt = asked.prompt(index)
      wanted[f"{prompt.id}@{epoch}"] = (epoch, index), prompt

    def of_this_process():
      named = [dataclasses.replace(prompt, id=id) for id, (_, prompt) in wanted.items()]
      for rollouts in run.engine.sample(named, config.rollout.samples, params):
        ticket, prompt = wanted[rollouts[0].prompt_id]
        with phases("reward"):
          yield validation.score(config, asked, ticket, prompt, rollouts)

    def from_another(fields):
      rollouts = list(map(rollout_from_json, fields["rollouts"]))
      ticket, prompt = wanted[rollouts[0].prompt_id]
      scores = [Score(*score) for score in fields["scores"]]
      return Group(ticket, asked.examples[ticket[1]], prompt, rollouts, scores)

    found, error = [], None
    try:
      for group in of_this_process():
        found.append(dict(rollouts=list(map(vars, group.rollouts)), scores=group.scores))
    except (EngineError, Stopped) as ended:
      error = ended
    groups = list(map(from_another, hosts.all_gather_lists(found, error)))
    found = {group.ticket: group for group in groups}
    return [found[ticket] for ticket in tickets]

  dynamic = config.algorithm.dynamic_sampling
  return fill_batch(
    queue,
    sample,
    size=config.batch.prompts,
    std_epsilon=config.algorithm.std_epsilon if dynamic else -1.0,
    max_rounds=config.algorithm.max_rounds if dynamic else 1,
  )


def _sampled_before(config, run: start.Run):
  """(step, batch) that the checkpoint holds and the run has not trained on, or None."""
  stored = run.policy.progress.ahead
  if stored is None:
    return None
  batch = overlap.restore_batch(
    stored,
    lambda token_ids: run.policy.tokenizer.decode(token_ids, skip_special_tokens=True),
    lambda ticket, rollouts: validation.score(
      config, run.asked, ticket, run.asked.prompt(ticket[1]), rollouts
    ),
  )
  return stored["step"], batch


def train_on(
  config, policy: start.Policy, batch: Batch, reference, step: int
) -> Callable[[], dict]:
  """Starts the optimiser step(s) of a batch; changes policy.model and policy.moments.

  Returns results(), which waits for them and returns their metrics.
  """
  algorithm = config.algorithm
  loss = policy_loss_of(config)
  lines = policy.model.config.attention != "xla"
  packed = [_pack(config, part, lines) for part in _deal(batch.kept, algorithm.steps_per_batch)]
  parts = [list(map(update.on_device, part)) for part in packed]
  olds = [None]
  if len(parts) > 1:  # ratios of the later steps are against the policy that sampled
    olds = [[update.score(policy.model, rows, loss=loss) for rows in part] for part in parts]
  started = []
  for part, old in zip(parts, olds):
    references = None
    if reference is not None:
      references = [update.score(reference, rows, loss=loss) for rows in part]
    policy.model, policy.moments, sums, logprobs = update.start_step(
      policy.tx, policy.model, policy.moments, part, loss, old, references
    )
    started.append((sums, old or logprobs))

  def results() -> dict:
    rows_of = []
    for (sums, logprobs), host_part in zip(started, packed):
      trained = [rows.shares_bs > 0 for rows in host_part]
      join = lambda arrays: np.concatenate([x[mask] for x, mask in zip(arrays, trained)])  # noqa: B023
      # First, because these are known before the optimiser's part of the step has run.
      gap = metrics.logprob_gap(
        join(list(map(on_host, logprobs))), join([rows.sampler_logprobs_bs for rows in host_part])
      )
      try:
        rows_of.append(gap | update.step_metrics(sums))
      except FloatingPointError as error:
        raise UserError(
          f"step {step + 1}: {error}; the last checkpoint is untouched. Lower optimizer.lr or look "
          "at this step's rollouts"
        ) from error
    return {name: float(np.mean([row[name] for row in rows_of])) for name in rows_of[0]} | {
      "packed_share": metrics.packed_share([rows for part in packed for rows in part])
    }

  return results


def policy_loss_of(config) -> update.Loss:
  """The loss of a config's reinforcement learning."""
  return update.Loss(
    kind="policy",
    clip_low=config.algorithm.clip_low,
    clip_high=config.algorithm.clip_high,
    importance_cap=config.algorithm.importance_cap,
    kl=config.algorithm.kl,
    temperature=config.rollout.temperature,
    chunk=config.batch.logprob_chunk,
    remat=config.batch.remat,
  )


def _deal(groups: list[Group], k: int) -> list[list[Group]]:
  """The groups in at most k parts of nearly equal size, none empty."""
  return [groups[i::k] for i in range(min(k, len(groups)))]


def _pack(config, groups: list[Group], lines: bool) -> list[packing.Rows]:
  """Micro-batches; with lines for the platform's attention kernel."""
  advantages_bg = grpo.group_advantages(
    [group.rewards for group in groups],
    ddof=config.algorithm.advantage_ddof,
    scale=config.algorithm.advantage_scale,
  )
  packed = [
    packing.PackedGroup(
      group.prompt.token_ids,
      [
        packing.Response(rollout.token_ids, rollout.sampler_logprobs, float(advantage))
        for rollout, advantage in zip(group.rollouts, advantages_g)
      ],
    )
    for group, advantages_g in zip(groups, advantages_bg)
  ]
  return packing.pack(
    packed,
    tokens_per_device=config.batch.tokens_per_device,
    shards=shards("b"),
    aggregate=config.algorithm.aggregate,
    max_tokens=config.rollout.max_tokens,
    lines=lines,
  )
