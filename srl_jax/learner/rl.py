"""The reinforcement learning loop: SRL, RLVR and the one-step reward are one loop.

Each step: draw prompts, sample groups, score them, keep those that teach (dynamic_sampling), pack
them, make the optimiser step(s), give the new weights to the engine, write down what happened. The
three methods differ in the example's prompt and in its reward, never here.
"""

import dataclasses
import pathlib
import time

import jax
import numpy as np

from srl_jax.data import prompts
from srl_jax.data.batches import PromptQueue
from srl_jax.data.sources import StepExample, load_examples
from srl_jax.evals import math_benchmarks
from srl_jax.learner import grpo, metrics, optimizer, packing, start, update
from srl_jax.learner.checkpoint import Checkpoints
from srl_jax.learner.dynamic_sampling import Batch, Group, fill_batch
from srl_jax.policy.sharding import ACT_AXES
from srl_jax.rewards.scoring import score_group
from srl_jax.rollout.engine import Prompt
from srl_jax.rollout.episodes import Task

MAX_EMPTY_STEPS = 10  # steps in a row without one group to train on, before the run gives up


def train(config, workdir: pathlib.Path) -> dict:
  """Runs the experiment of `config` in `workdir`, from its last checkpoint if it has one.

  Call it with the mesh set. Returns the summary (the final table as data). Raises start.Stopped,
  after saving, when a signal asks the run to stop; ValueError on bad input.
  """
  examples = load_examples(config.data, method=config.method, seed=config.seed)
  steps = config.train.steps or -(
    -config.train.epochs * len(examples.train) // config.batch.prompts
  )
  tx = optimizer.make(config.optimizer, steps * config.algorithm.steps_per_batch)
  checkpoints = Checkpoints(workdir, config.train.keep)
  policy = start.load_policy(config, tx, checkpoints)
  progress = policy.progress
  reference = start.load_weights(config, policy.folder) if config.algorithm.kl else None
  asked = Asked.make(config, policy.tokenizer, examples.train)
  validation = Asked.make(config, policy.tokenizer, examples.validation)
  queue = PromptQueue(len(asked.examples), config.seed)
  if progress.queue:
    queue.restore(progress.queue)
  engine = start.make_engine(config, policy)
  solver = start.make_solver(config, policy, engine)
  log = metrics.Log(
    workdir, config.log, step=progress.step, name=workdir.name, config=config.to_dict()
  )
  bar = metrics.Progress(steps, progress.step)
  stop = start.StopSignal()
  phases = metrics.Phases()
  begun = time.monotonic() - progress.seconds
  empty, short = 0, False

  def save(score=None):
    with phases("save"):
      progress.queue, progress.seconds = queue.state(), time.monotonic() - begun
      checkpoints.save(policy.model, policy.moments, progress, score)

  def done():
    return progress.step >= steps or (
      not config.train.steps and queue.epochs() >= config.train.epochs
    )

  bar.say(_opening(config, policy, asked, validation, examples.counts, steps))
  engine.load_weights(policy.model, progress.step)
  if config.eval.benchmark and not progress.before:
    bar.say(f"measuring the untrained model on {config.eval.benchmark} ...")
    progress.before = measure(config, solver)
  try:
    while not done():
      step = progress.step
      at_start = queue.state()
      with phases("sample"):
        batch = sample_batch(config, engine, queue, asked, step, stop, phases)
      phases.seconds["sample"] -= phases.seconds["reward"]
      row = metrics.batch_metrics(batch)
      empty = 0 if batch.kept else empty + 1
      if empty == MAX_EMPTY_STEPS:
        raise ValueError(
          f"step {step + 1}: {empty} steps in a row without a group to train on. "
          f"{workdir}/rollouts tells what was sampled. Lower algorithm.std_epsilon, or give data "
          "whose format the model can follow and whose steps it does not know already"
        )
      if len(batch.kept) < config.batch.prompts and config.algorithm.dynamic_sampling and not short:
        short = True
        bar.say(
          f"step {step + 1}: {batch.rounds} rounds gave {len(batch.kept)} groups of "
          f"{config.batch.prompts}; training on these. From here on only the line of progress tells "
          "(algorithm.max_rounds allows more rounds, algorithm.std_epsilon drops less)"
        )
      if batch.kept:
        with phases("update"):
          row |= train_on(config, policy, batch, reference, step)
      progress.step += 1
      with phases("sync"):
        engine.load_weights(policy.model, progress.step)
      score = None
      if config.train.eval_every and progress.step % config.train.eval_every == 0:
        with phases("validate"):
          found = validate(config, engine, solver, validation)
        row |= found
        score = found.get("validation_accuracy", found["validation_reward"])
        progress.scores[str(progress.step)] = score
      if score is not None or progress.step % config.train.save_every == 0 or done():
        save(score)
      row |= metrics.speed(policy.model.config, batch, phases.take())
      row["epoch"] = queue.epochs()
      log.step(progress.step, row, batch.groups)
      bar.show(progress.step, _live(row))
      at_start = queue.state()
      stop.check()
  except start.Stopped:
    queue.restore(at_start)  # a step that was not finished is done again
    save()
    raise
  finally:
    stop.restore()
    log.close()
  return finish(config, policy, engine, solver, checkpoints, bar, begun)


@dataclasses.dataclass(frozen=True)
class Asked:
  """Examples and their prompts, in the same order.

  Fields: examples; prompts; think_opened, whether the template opens the think block; too_long,
  how many examples were left out because of data.max_prompt_tokens.
  """

  examples: list[StepExample]
  prompts: list[Prompt]
  think_opened: bool
  too_long: int

  @classmethod
  def make(cls, config, tokenizer, examples: list[StepExample]) -> "Asked":
    """Prompts for examples; raises ValueError when none of them is short enough."""
    system = {}
    kept, asked, opened = [], [], False
    for example in examples:
      task = example.task
      if task not in system:
        style = "think" if task == "srl" else config.prompt.style
        system[task] = prompts.system_prompt(task, style, config.prompt.system_file)
      messages = prompts.build_messages(
        example.problem, example.context, example.hint, system[task]
      )
      encoded = prompts.encode(tokenizer, messages)
      if len(encoded.token_ids) <= config.data.max_prompt_tokens:
        opened = encoded.think_opened
        kept.append(example)
        asked.append(Prompt(example.id, tuple(encoded.token_ids)))
    if examples and not kept:
      raise ValueError(
        f"data.max_prompt_tokens: all {len(examples)} prompts are longer than "
        f"{config.data.max_prompt_tokens} tokens; raise it"
      )
    return cls(kept, asked, opened, len(examples) - len(kept))


def sample_batch(config, engine, queue, asked: Asked, step, stop, phases) -> Batch:
  """The batch of a step: sampled, scored and filtered."""
  params = start.sampling_params(config, step)

  def sample(tickets) -> list[Group]:
    # An example that comes twice in one step, in two epochs, must not get the same samples.
    ids = {f"{asked.prompts[index].id}@{epoch}": (epoch, index) for epoch, index in tickets}
    wanted = [dataclasses.replace(asked.prompts[index], id=id) for id, (_, index) in ids.items()]
    groups = {}
    for rollouts in engine.sample(wanted, config.rollout.samples, params):
      stop.check()
      ticket = ids[rollouts[0].prompt_id]
      with phases("reward"):
        groups[ticket] = _score(config, asked, ticket, rollouts)
    return [groups[ticket] for ticket in tickets]

  dynamic = config.algorithm.dynamic_sampling
  return fill_batch(
    queue,
    sample,
    size=config.batch.prompts,
    std_epsilon=config.algorithm.std_epsilon if dynamic else -1.0,
    max_rounds=config.algorithm.max_rounds if dynamic else 1,
  )


def _score(config, asked: Asked, ticket, rollouts) -> Group:
  example = asked.examples[ticket[1]]
  scores = score_group(
    example,
    [rollout.text for rollout in rollouts],
    [rollout.finish_reason for rollout in rollouts],
    reward=config.reward,
    think_opened=asked.think_opened,
  )
  return Group(ticket, example, asked.prompts[ticket[1]], rollouts, scores)


def train_on(config, policy: start.Policy, batch: Batch, reference, step: int) -> dict:
  """Makes the optimiser step(s) of a batch; changes policy.model and policy.moments."""
  algorithm = config.algorithm
  loss = policy_loss_of(config)
  parts = [_pack(config, part) for part in _deal(batch.kept, algorithm.steps_per_batch)]
  olds = [None]
  if len(parts) > 1:  # ratios of the later steps are against the policy that sampled
    olds = [[update.score(policy.model, rows, loss=loss) for rows in part] for part in parts]
  rows_of = []
  for part, old in zip(parts, olds):
    references = None
    if reference is not None:
      references = [update.score(reference, rows, loss=loss) for rows in part]
    try:
      policy.model, policy.moments, found, logprobs = update.train_step(
        policy.tx, policy.model, policy.moments, part, loss, old, references
      )
    except FloatingPointError as error:
      raise ValueError(
        f"step {step + 1}: {error}; the last checkpoint is untouched. Lower optimizer.lr or look "
        "at this step's rollouts"
      ) from error
    for rows, logprobs_bs in zip(part, logprobs):
      trained = np.asarray(rows.shares_bs) > 0
      found |= metrics.logprob_gap(
        logprobs_bs[trained], np.asarray(rows.sampler_logprobs_bs)[trained]
      )
    rows_of.append(found)
  return {name: float(np.mean([row[name] for row in rows_of])) for name in rows_of[0]} | {
    "packed_share": metrics.packed_share([rows for part in parts for rows in part])
  }


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


def _pack(config, groups: list[Group]) -> list[packing.Rows]:
  """Micro-batches, on the device."""
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
  rows = packing.pack(
    packed,
    tokens_per_device=config.batch.tokens_per_device,
    shards=shards(),
    aggregate=config.algorithm.aggregate,
    max_tokens=config.rollout.max_tokens,
  )
  return [update.on_device(part) for part in rows]


def shards() -> int:
  """Devices that rows are cut over."""
  mesh = jax.sharding.get_mesh()
  return int(np.prod([mesh.shape[axis] for axis in ACT_AXES["b"]]))


def validate(config, engine, solver, validation: Asked) -> dict:
  """Greedy step reward on the held-out examples and, if eval.mode asks, their final answers."""
  found = {}
  if validation.examples:
    params = dataclasses.replace(start.sampling_params(config), temperature=0.0, top_p=1.0)
    index = {prompt.id: i for i, prompt in enumerate(validation.prompts)}
    groups = [
      _score(config, validation, (0, index[rollouts[0].prompt_id]), rollouts)
      for rollouts in engine.sample(validation.prompts, 1, params)
    ]
    scores = [group.scores[0] for group in groups]
    found["validation_reward"] = float(np.mean([score.reward for score in scores]))
    found["validation_failures"] = float(np.mean([score.failure is not None for score in scores]))
  if config.eval.mode != "off":
    tasks = held_out_tasks(validation.examples)
    if tasks:
      found["validation_accuracy"] = math_benchmarks.accuracy(solver, tasks)
  return found


def held_out_tasks(examples: list[StepExample]) -> list[Task]:
  """The problems of examples that have a gold answer."""
  tasks = {e.problem_id: Task(e.problem_id, e.problem, e.answer) for e in examples if e.answer}
  return list(tasks.values())


def measure(config, solver) -> dict:
  """The config's benchmark: greedy, avg@k, pass@k."""
  tasks = math_benchmarks.load_benchmark(config.eval.benchmark)
  return math_benchmarks.measure(solver, tasks, config.eval.samples)


def finish(config, policy, engine, solver, checkpoints, bar, begun) -> dict:
  """The summary; the benchmark is measured with the weights that validation liked best."""
  best = checkpoints.best_step()
  progress = policy.progress
  summary = {
    "method": config.method,
    "steps": progress.step,
    "best_step": best,
    "validation": progress.scores,
  }
  if config.eval.benchmark:
    bar.say(f"measuring step {best} on {config.eval.benchmark} ...")
    shapes = jax.tree.map(checkpoints.abstract, policy.model)
    engine.load_weights(checkpoints.restore(best, shapes)[0], best)
    summary |= {"before": progress.before, "after": measure(config, solver)}
  engine.close()
  checkpoints.close()
  return summary | {"seconds": time.monotonic() - begun}


def _opening(config, policy, asked: Asked, validation: Asked, counts: dict, steps: int) -> str:
  size = policy.model.config
  state = f"continued from step {policy.progress.step}" if policy.resumed else "from the start"
  left_out = f", {asked.too_long} prompts too long" if asked.too_long else ""
  return (
    f"{config.method}: {config.model} ({size.num_hidden_layers} layers, width {size.hidden_size}), "
    f"{len(asked.examples)} prompts to train on and {len(validation.examples)} held out"
    f"{left_out} ({', '.join(f'{name} {n}' for name, n in counts.items())}); "
    f"{steps} steps, {state}"
  )


def _live(row: dict) -> dict[str, str]:
  out = {
    "reward": f"{row['reward_mean']:.3f}",
    "kept": f"{row['kept_share']:.0%}",
    "groups": f"{row['groups_kept']:.0f}",
    "format failures": f"{row['format_failures']:.1%}",
    "tokens/s": f"{row['tokens_per_second']:,.0f}",
  }
  if "validation_accuracy" in row:
    out["held-out accuracy"] = f"{row['validation_accuracy']:.0%}"
  return out
