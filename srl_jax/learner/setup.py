"""The start of a run, before its first step: data, policy, prompts, engine."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from srl_jax import hosts
from srl_jax.data.examples import Examples, StepExample
from srl_jax.data.tokenizer import load_tokenizer, stop_ids
from srl_jax.evals.math_benchmarks import Solver
from srl_jax.learner import limits, optimizer, programs, run_data, start
from srl_jax.learner.checkpoint import (
  Checkpoints,
  Progress,
  config_json,
  set_aside_damaged_scores,
)
from srl_jax.learner.log import Log
from srl_jax.learner.packing import RowShape
from srl_jax.learner.rollouts import sampling_params
from srl_jax.learner.shapes import Prompts, shapes_of_run
from srl_jax.learner.stop import StopSignal
from srl_jax.learner.update import TrainState, init_moments
from srl_jax.policy.hf_files import load_config, resolve_model
from srl_jax.policy.lora import join, split
from srl_jax.policy.model import ModelConfig, Qwen2
from srl_jax.policy.sharding import check_mesh, on_mesh, platform
from srl_jax.progress import ProgressLine
from srl_jax.rollout.engine import Engine, ReplicatedSampling
from srl_jax.rollout.episodes import PromptBuilder, Question, prompt_builder
from srl_jax.rollout.prompt_set import PromptSet
from srl_jax.rollout.sampler import Sampler
from srl_jax.rollout.slots import SlotShape
from srl_jax.rollout.vllm_client import VllmEngine
from srl_jax.tasks import PromptSettings, task_of_mode
from srl_jax.tasks.examples import load_examples


@dataclasses.dataclass
class Run:
  """A run at its last checkpoint, or at its start.

  Fields:
    config, workdir: of the run.
    steps: of the whole run.
    tx: the optimiser.
    state: step, policy and moments; the loop replaces it.
    progress: the rest of a checkpoint.
    checkpoints: of the workdir.
    tokenizer, stop_ids: of the policy; the first stop id ends a supervised target.
    folder: of the policy's Hugging Face files.
    train_prompts, held_out: prompts to train on and to validate with.
    row_shapes: of the micro-batches of the update.
    engine: samples rollouts.
    solver, held_out_problems: for final answers; the held-out problems that have one.
    stop: remembers a signal to stop.
    log, line: the files of metrics and rollouts, the progress line.
    compiled: counts the programs that are compiled.
    start_time: on the monotonic clock, earlier by the seconds of work before a restart.
  """

  config: ConfigDict
  workdir: pathlib.Path
  steps: int
  tx: optax.GradientTransformation
  state: TrainState
  progress: Progress
  checkpoints: Checkpoints
  tokenizer: object
  stop_ids: list[int]
  folder: pathlib.Path
  train_prompts: PromptSet
  held_out: PromptSet
  row_shapes: list[RowShape]
  engine: Engine
  solver: Solver
  held_out_problems: list[Question]
  stop: StopSignal
  log: Log
  line: ProgressLine
  compiled: programs.Counter
  start_time: float

  def is_due(self, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and self.state.step % every == 0

  def save_if_due(self, is_last: bool) -> None:
    """Saves every train.save_every steps, at every validated step and at the last one."""
    score = self.progress.scores.get(str(self.state.step))
    if is_last or score is not None or self.is_due(self.config.train.save_every):
      self.save(score)

  def save(self, score: float | None = None) -> None:
    """Writes a checkpoint; `score` is that of the validation at this step, if there was one."""
    self.progress.seconds = time.monotonic() - self.start_time
    trained, _ = split(self.state.model)
    self.checkpoints.save(self.state._replace(model=trained), self.progress, score)


@contextlib.contextmanager
def open_run(config, workdir: pathlib.Path) -> Iterator[Run]:
  """The run of `config` in `workdir` at its last checkpoint, or at its start; closed at the end.

  Call it with the mesh set. Raises Stopped on a signal during the start; UserError on bad input.
  """
  # Everything that is opened is closed in reverse order, also when the start fails.
  with contextlib.ExitStack() as stack:
    stop = StopSignal()
    stack.callback(stop.restore)
    # There is nothing to save yet, so a signal may end the start anywhere. Several processes stop
    # together, at the collectives below.
    stop.at_once = jax.process_count() == 1
    compiled = programs.Counter()
    stack.callback(compiled.close)
    examples = load_examples(config)
    stop.raise_if_any_stopped()

    set_aside_damaged_scores(workdir)
    checkpoints = Checkpoints(workdir, config.train.keep)
    stack.callback(checkpoints.close)
    policy = policy_files(config, examples)
    prompts = measure_prompts(config, workdir, checkpoints, policy, examples)
    steps = config.train.steps or epoch_steps(config, len(prompts.train.examples))
    stop.raise_if_any_stopped()

    line = ProgressLine(steps, quiet=not hosts.is_writer())
    tx = optimizer.of_run(config, steps * config.algorithm.steps_per_batch)
    build_prompt = builder_of_problems(config, policy.tokenizer)
    shapes = shapes_of_run(config, policy.architecture, prompts, build_prompt)
    engine = make_engine(config, policy, stop, shapes.slots)
    stack.callback(engine.close)
    # Programs compile while the weights load.
    ahead = programs.Ahead(calls_of_run(config, policy.architecture, tx, shapes.rows, engine))
    state, progress = load_state(config, policy, tx, checkpoints)
    run_data.adopt(progress, prompts.data)
    progress.config = config_json(config)
    ahead.wait(line.say)
    stop.raise_if_any_stopped()

    # The log is opened after the restore, because it removes what was written after the restored
    # step, and a damaged last checkpoint makes that an earlier one.
    log = Log(workdir, config.log, step=state.step, name=workdir.name, config=config.to_dict())
    stack.callback(log.close)
    run = Run(
      config=config,
      workdir=workdir,
      steps=steps,
      tx=tx,
      state=state,
      progress=progress,
      checkpoints=checkpoints,
      tokenizer=policy.tokenizer,
      stop_ids=policy.stop_ids,
      folder=policy.folder,
      train_prompts=prompts.train,
      held_out=prompts.held_out,
      row_shapes=shapes.rows,
      engine=engine,
      solver=make_solver(config, build_prompt, engine),
      held_out_problems=prompts.problems,
      stop=stop,
      log=log,
      line=line,
      compiled=compiled,
      start_time=time.monotonic() - progress.seconds,
    )
    line.say(opening(run, examples))
    stop.at_once = False
    yield run


class PolicyFiles(NamedTuple):
  """The parts of a policy's folder that are read before its weights."""

  folder: pathlib.Path
  architecture: ModelConfig
  tokenizer: object
  stop_ids: list[int]


def policy_files(config, examples: Examples) -> PolicyFiles:
  """The policy's folder and what is in it; raises UserError if config and model do not fit."""
  folder = resolve_model(config.model)
  architecture = load_config(folder, config.dtype).on_platform(platform())
  has_answers = any(example.answer for example in examples.validation)
  limits.check(config, architecture, has_answers=has_answers)
  tokenizer = load_tokenizer(folder)
  return PolicyFiles(folder, architecture, tokenizer, stop_ids(tokenizer, folder))


def measure_prompts(
  config, workdir: pathlib.Path, checkpoints: Checkpoints, policy: PolicyFiles, examples: Examples
) -> Prompts:
  """The prompts of a run, with the hold-out of its last checkpoint.

  Raises UserError if the data is other than the checkpoint's (run_data.check).
  """
  # The fingerprint is compared before any weights are loaded, so that a refusal is immediate.
  saved = hosts.broadcast(checkpoints.steps())
  before = checkpoints.last_progress().data if saved else None
  examples = run_data.old_hold_out(config, before, examples)
  positions = policy.architecture.max_position_embeddings
  train = PromptSet(config, policy.tokenizer, examples.train, positions)
  held_out = PromptSet(config, policy.tokenizer, examples.validation, positions)
  data = run_data.fingerprint(config, before, examples, train, held_out, policy.folder)
  run_data.check(config, workdir / "checkpoints" / str(saved[-1] if saved else 0), before, data)
  return Prompts(train, held_out, problems_with_answer(held_out.examples), data)


def calls_of_run(config, architecture, tx, shapes: list[RowShape], engine: Engine) -> list:
  """The calls of the run's programs, with the shapes of its weights on the mesh that is set."""
  model = on_mesh(start.policy_shapes(config, architecture))
  moments = on_mesh(jax.eval_shape(tx.init, split(model)[0]))
  calls = programs.update_calls(config, TrainState(0, model, moments), tx, shapes)
  if isinstance(engine, Sampler):  # first in the list, because a run samples first
    calls = [programs.Call(*call) for call in engine.calls(model)] + calls
  return calls


def epoch_steps(config, count: int) -> int:
  """The steps of config.train.epochs over `count` examples.

  Reinforcement learning draws prompts across the end of an epoch; supervised batches end there.
  """
  if config.method == "sft":  # -(-a // b) rounds up
    return config.train.epochs * -(-count // config.batch.prompts)
  return -(-config.train.epochs * count // config.batch.prompts)


def opening(run: Run, examples: Examples) -> str:
  """The line that is shown before the first step: method, model, data, length."""
  config, size = run.config, run.state.model.config
  source = ", ".join(f"{name} {n}" for name, n in examples.counts.items())
  too_long = f", {run.train_prompts.too_long} too long" if run.train_prompts.too_long else ""
  begun = f"continued from step {run.state.step}" if run.state.step else "from the start"
  adapters = f", adapters of rank {config.lora.rank}" if config.lora.rank else ""
  return (
    f"{config.method}: {config.model} ({size.num_hidden_layers} layers, width {size.hidden_size})"
    f"{adapters}; "
    f"source: {source}; {len(run.train_prompts.examples)} prompts to train on, "
    f"{len(run.held_out.examples)} held out{too_long}; {run.steps} steps, {begun}"
  )


# ---------------------------------------------------------------------------------- the policy


def load_state(
  config, policy: PolicyFiles, tx: optax.GradientTransformation, checkpoints: Checkpoints
) -> tuple[TrainState, Progress]:
  """The state at the run's last whole checkpoint, or its start; what is trained is float32.

  Call it with the mesh set. Raises UserError if the frozen weights beside a checkpoint's adapters
  are other ones now.
  """
  architecture = policy.architecture
  mesh = ",".join(f"{axis}={size}" for axis, size in jax.sharding.get_mesh().shape.items())
  check_mesh(mesh, architecture.sizes())
  if not hosts.broadcast(checkpoints.steps()):
    model, base = start.start_policy(config, policy.folder)
    progress = Progress(base=base and base.json())
    return TrainState(0, model, init_moments(tx, split(model)[0])), progress
  shapes, frozen = split(start.policy_shapes(config, architecture))
  step, trained, moments, progress = checkpoints.restore_last(
    shapes, jax.eval_shape(tx.init, shapes)
  )
  if frozen is not None:
    place = checkpoints.folder / str(step)
    frozen = start.restore_base(config, progress, policy.folder, place)
  return TrainState(step, join(trained, frozen), moments), progress


def load_reference(run: Run) -> Qwen2 | None:
  """The policy of the KL term, the one that the run started from; None without that term."""
  if not run.config.algorithm.kl:
    return None
  return start.start_reference(run.config, run.folder, run.state.model)


# ---------------------------------------------------------------------------------- the engine


def make_engine(
  config, policy: PolicyFiles, stop: StopSignal, shapes: Sequence[SlotShape]
) -> Engine:
  """The rollout engine of a config; while it samples or waits it checks `stop`, which may raise.

  `shapes` are those of the built-in engine's slots.
  """
  rollout = config.rollout
  if rollout.engine == "builtin":
    # All processes decode together, so they can stop together between two decodings.
    check = stop.raise_if_any_stopped
    return Sampler(policy.tokenizer, policy.stop_ids, rollout.width, check, shapes)
  servers = [url.strip() for url in rollout.servers.split(",")]
  return VllmEngine(
    hosts.local_part(servers),  # of a single server the first process has all
    policy.tokenizer,
    policy.stop_ids,
    weights_root=rollout.weights_root,
    lag=rollout.lag,
    public_servers=rollout.public_servers,
    patience=rollout.patience,
    merged_push=config.lora.merged_push,
    check=stop.raise_if_stopped,
  )


def builder_of_problems(config, tokenizer) -> PromptBuilder:
  """Builds the prompts with which the run solves whole problems."""
  task = task_of_mode(config.eval.mode, config.method)
  return prompt_builder(tokenizer, task, PromptSettings.from_group(config.prompt))


def make_solver(config, build_prompt: PromptBuilder, engine: Engine) -> Solver:
  """Returns the solver of whole problems, with the mode and limits of config.eval."""
  return Solver(
    engine=ReplicatedSampling(engine),
    build_prompt=build_prompt,
    mode=config.eval.mode,
    params=dataclasses.replace(sampling_params(config), max_tokens=config.eval.max_tokens),
    max_turns=config.eval.max_turns,
    max_prompt_tokens=config.data.max_prompt_tokens,
  )


def problems_with_answer(examples: list[StepExample]) -> list[Question]:
  """The problems of examples that have a gold answer, each once."""
  problems = {}  # by id: a problem has an example for each of its steps
  for example in examples:
    if example.answer:
      problems[example.problem_id] = Question(example.problem_id, example.problem, example.answer)
  return list(problems.values())
