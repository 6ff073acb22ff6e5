"""What every run does before its first step: workdir, policy, prompts, engine; and how it ends."""

import contextlib
import dataclasses
import gc
import json
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax

from srl_jax import folders, hosts
from srl_jax.data.examples import Examples
from srl_jax.data.tokenizer import load_tokenizer
from srl_jax.data.tokenizer import stop_ids as stop_ids_of
from srl_jax.errors import UserError
from srl_jax.evals.math_benchmarks import Solver
from srl_jax.learner import metrics, optimizer, terminal, update
from srl_jax.learner.checkpoint import Checkpoints, Progress, read_config
from srl_jax.learner.stop import StopSignal
from srl_jax.policy.hf_files import load_config, resolve_model
from srl_jax.policy.model import Qwen2, abstract, init
from srl_jax.policy.sharding import check_mesh, platform
from srl_jax.policy.weights import load_hf
from srl_jax.rollout.engine import Engine, ReplicatedSampling, SamplingParams
from srl_jax.rollout.episodes import prompt_builder
from srl_jax.rollout.prompt_set import PromptSet as Asked
from srl_jax.rollout.sampler import Sampler
from srl_jax.rollout.vllm_client import VllmEngine
from srl_jax.tasks import load_examples, task_of_mode

# A run may be continued with other values of these; any other key makes it another run.
FREE_KEYS = (
  "mesh",
  "rollout.servers",
  "rollout.public_servers",
  "rollout.weights_root",
  "rollout.patience",
  "log.tensorboard",
  "log.wandb",
  "train.steps",
  "train.epochs",
  "train.save_every",
  "train.keep",
)


def claim_workdir(workdir: pathlib.Path, config) -> None:
  """Makes `workdir` this config's: a new folder, or one that holds a run of the same config.

  Raises UserError when it holds another run's checkpoints, with the keys that differ, or more
  steps than the config asks for.
  """
  if (workdir / "config.json").exists() and Checkpoints.present(workdir):
    check_same_run(workdir, config)
    step = _last_step(workdir)
    if 0 < config.train.steps < step:
      raise UserError(
        f"workdir {workdir} has {step} steps already, more than train.steps={config.train.steps}; "
        "give another --workdir"
      )
  if hosts.is_writer():
    workdir.mkdir(parents=True, exist_ok=True)
    folders.write_json(workdir / "config.json", config.to_dict())


def finished(workdir: pathlib.Path, config) -> dict | None:
  """The summary of the run in a claimed workdir, if it has made its config.train.steps."""
  path = workdir / "summary.json"
  if not config.train.steps or not path.exists() or not Checkpoints.present(workdir):
    return None
  summary = json.loads(path.read_text(encoding="utf-8"))
  done = summary["steps"] == config.train.steps == _last_step(workdir)
  return summary if done else None


def _last_step(workdir: pathlib.Path) -> int:
  folders = (workdir / "checkpoints").iterdir()
  return max(int(path.name) for path in folders if path.name.isdigit())


def check_same_run(workdir: pathlib.Path, config) -> None:
  """Raises UserError, with the keys that differ, if the run in `workdir` is not of this config."""
  folders.check_same_settings(
    workdir,
    folders.flatten(read_config(workdir)),
    folders.flatten(config),
    holds="a run of another config",
    flag="--workdir",
    free=FREE_KEYS,
  )


@dataclasses.dataclass
class Policy:
  """The policy of a run and what belongs to it.

  Fields: model, moments and tx (its optimiser); tokenizer; stop_ids; progress, where the run
  stands; folder, of the model in Hugging Face form; resumed, whether a checkpoint was read.
  """

  model: Qwen2
  moments: optax.OptState
  tx: optax.GradientTransformation
  tokenizer: object
  stop_ids: list[int]
  progress: Progress
  folder: pathlib.Path
  resumed: bool


@dataclasses.dataclass
class Run:
  """What a training loop works with; `begin` makes it.

  Fields: workdir; examples, of the config's source; steps, of the whole run; policy, checkpoints;
  asked and held_out, the prompts to train on and to validate with; engine; solver, of whole
  problems; stop, whether to go on; log and bar, what is written and shown; phases, the seconds of a
  step; begun, when the work began, on the monotonic clock (earlier parts of the run are counted).
  """

  workdir: pathlib.Path
  examples: Examples
  steps: int
  policy: Policy
  checkpoints: Checkpoints
  asked: "Asked"
  held_out: "Asked"
  engine: Engine
  solver: Solver
  stop: StopSignal
  log: metrics.Log
  bar: terminal.Line
  phases: metrics.Phases
  begun: float


@contextlib.contextmanager
def begin(
  config, workdir: pathlib.Path, steps_of: Callable[[int], int], updates: int = 1
) -> Iterator[Run]:
  """The run of `config` in `workdir` at its last checkpoint, or at its start; closed at the end.

  Args:
    steps_of: number of examples -> steps of train.epochs; train.steps goes before it.
    updates: optimiser steps of one step.

  Call it with the mesh set. Raises Stopped when a signal comes meanwhile; UserError on bad
  input.
  """
  with contextlib.ExitStack() as ends:
    stop = StopSignal()
    ends.callback(stop.restore)
    examples = load_examples(config)
    steps = config.train.steps or steps_of(len(examples.train))
    checkpoints = Checkpoints(workdir, config.train.keep)
    ends.callback(checkpoints.close)
    stop.agree()
    tx = optimizer.make(config.optimizer, steps * updates)
    policy = load_policy(config, tx, checkpoints)
    stop.agree()
    asked = Asked(config, policy.tokenizer, examples.train)
    held_out = Asked(config, policy.tokenizer, examples.validation)
    stop.agree()
    engine = make_engine(config, policy, stop)
    ends.callback(engine.close)
    step, name = policy.progress.step, workdir.name
    log = metrics.Log(workdir, config.log, step=step, name=name, config=config.to_dict())
    ends.callback(log.close)
    gc.freeze()  # or the garbage collector walks all that is loaded, while the devices wait
    ends.callback(gc.unfreeze)
    yield Run(
      workdir,
      examples,
      steps,
      policy,
      checkpoints,
      asked,
      held_out,
      engine,
      make_solver(config, policy, engine),
      stop,
      log,
      terminal.Line(steps),
      metrics.Phases(),
      time.monotonic() - policy.progress.seconds,
    )


def load_policy(config, tx: optax.GradientTransformation, checkpoints: Checkpoints) -> Policy:
  """The policy at the run's last checkpoint, or as `init_from` or `model` have it.

  Call it with the mesh set. Weights are float32; the model computes in config.dtype.
  """
  folder = resolve_model(config.model)
  architecture = load_config(folder, config.dtype).on_platform(platform())
  mesh = ",".join(f"{axis}={size}" for axis, size in jax.sharding.get_mesh().shape.items())
  check_mesh(mesh, architecture.sizes())
  tokenizer = load_tokenizer(folder)
  steps = hosts.broadcast(checkpoints.steps())
  if steps:
    shapes = abstract(architecture)
    moments = jax.eval_shape(tx.init, shapes)
    model, moments, progress = checkpoints.restore(steps[-1], shapes, moments)
  else:
    model = load_weights(config, folder)
    moments, progress = update.init_moments(tx, model), Progress()
  stop_ids = stop_ids_of(tokenizer, folder)
  return Policy(model, moments, tx, tokenizer, stop_ids, progress, folder, bool(steps))


def load_weights(config, folder: pathlib.Path) -> Qwen2:
  """The weights that a run of `config` starts from; `folder` is config.model on disk."""
  architecture = load_config(folder, config.dtype)
  if config.init_from == "random":
    return init(architecture, config.seed)
  if not config.init_from or not Checkpoints.present(config.init_from):
    try:
      folder = resolve_model(config.init_from) if config.init_from else folder
    except ValueError as error:
      raise UserError(f"init_from: no run with a checkpoint is there; {error}") from error
    return load_hf(folder, dtype=jnp.float32, compute_dtype=jnp.dtype(config.dtype))[1]
  checkpoints = Checkpoints(config.init_from)
  shapes = abstract(architecture.on_platform(platform()))
  model, _, _ = checkpoints.restore(hosts.broadcast(checkpoints.best_step()), shapes)
  checkpoints.close()
  return model


def make_engine(config, policy: Policy, stop: StopSignal) -> Engine:
  """The rollout engine of a config; while it samples or waits it asks `stop`, which may raise."""
  rollout = config.rollout
  if rollout.engine == "builtin":
    # All processes decode together, so they can stop between two decodings, together.
    return Sampler(policy.tokenizer, policy.stop_ids, rollout.width, stop.agree)
  servers = [url.strip() for url in rollout.servers.split(",")]
  return VllmEngine(
    hosts.local_part(servers),  # one server: the first process has it
    policy.tokenizer,
    policy.stop_ids,
    weights_root=rollout.weights_root,
    lag=rollout.lag,
    public_servers=rollout.public_servers,
    patience=rollout.patience,
    check=stop.check,
  )


def sampling_params(config, step: int = 0) -> SamplingParams:
  """How a config samples at a step."""
  rollout = config.rollout
  return SamplingParams(rollout.max_tokens, rollout.temperature, seed=config.seed, step=step)


def make_solver(config, policy: Policy, engine: Engine) -> Solver:
  """Solves whole problems as config.eval says."""
  task, prompt = task_of_mode(config.eval.mode, config.method), config.prompt
  return Solver(
    engine=ReplicatedSampling(engine),
    build_prompt=prompt_builder(policy.tokenizer, task, prompt.style, prompt.system_file),
    mode=config.eval.mode,
    params=dataclasses.replace(sampling_params(config), max_tokens=config.eval.max_tokens),
    max_turns=config.eval.max_turns,
    max_prompt_tokens=config.data.max_prompt_tokens,
  )
