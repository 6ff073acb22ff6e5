"""What every run does before its first step and after its last: workdir, policy, stopping."""

import dataclasses
import json
import os
import pathlib
import signal
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from srl_jax.data import prompts
from srl_jax.data.sources import StepExample
from srl_jax.evals.math_benchmarks import Solver
from srl_jax.learner import update
from srl_jax.learner.checkpoint import Checkpoints, Progress
from srl_jax.policy.hf_files import load_config, resolve_model
from srl_jax.policy.model import Qwen2, init
from srl_jax.policy.sharding import ACT_AXES, check_mesh
from srl_jax.policy.weights import load_hf
from srl_jax.rollout.engine import Engine, Prompt, SamplingParams
from srl_jax.rollout.episodes import asker
from srl_jax.rollout.sampler import Sampler
from srl_jax.rollout.vllm_client import VllmEngine

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


def flatten(config) -> dict:
  """{"a.b": value} of a ConfigDict or nested dicts."""
  flat = {}
  for key, value in config.items():
    if hasattr(value, "items"):
      flat |= {f"{key}.{inner}": x for inner, x in flatten(value).items()}
    else:
      flat[key] = list(value) if isinstance(value, tuple) else value
  return flat


def claim_workdir(workdir: pathlib.Path, config) -> None:
  """Makes `workdir` this config's: a new folder, or one that holds a run of the same config.

  Raises ValueError when it holds another run's checkpoints, with the keys that differ.
  """
  path = workdir / "config.json"
  now = flatten(config)
  if path.exists() and Checkpoints.present(workdir):
    before = flatten(json.loads(path.read_text(encoding="utf-8")))
    keys = [key for key in {**before, **now} if key not in FREE_KEYS]
    differ = [
      f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
      for key in keys
      if before.get(key) != now.get(key)
    ]
    if differ:
      raise ValueError(
        f"workdir {workdir} holds a run of another config: {'; '.join(differ)}. Give another "
        "--workdir, or set these back to continue that run"
      )
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(path, config.to_dict())


def write_json(path: pathlib.Path, data) -> None:
  """Writes data so that the file is either the old or the new one, never half of it."""
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
  os.replace(partial, path)


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


def load_policy(config, tx: optax.GradientTransformation, checkpoints: Checkpoints) -> Policy:
  """The policy at the run's last checkpoint, or as `init_from` or `model` have it.

  Call it with the mesh set. Weights are float32; the model computes in config.dtype.
  """
  folder = resolve_model(config.model)
  mesh = ",".join(f"{axis}={size}" for axis, size in jax.sharding.get_mesh().shape.items())
  check_mesh(mesh, load_config(folder).sizes())
  tokenizer = prompts.load_tokenizer(folder)
  model = load_weights(config, folder)
  moments, progress = update.init_moments(tx, model), Progress()
  steps = checkpoints.steps()
  if steps:
    shapes = jax.tree.map(checkpoints.abstract, (model, moments))
    model = moments = None  # the new arrays take their place
    model, moments, progress = checkpoints.restore(steps[-1], *shapes)
  stop_ids = prompts.stop_ids(tokenizer, folder)
  return Policy(model, moments, tx, tokenizer, stop_ids, progress, folder, bool(steps))


def load_weights(config, folder: pathlib.Path) -> Qwen2:
  """The weights that a run of `config` starts from; `folder` is config.model on disk."""
  if config.init_from == "random":
    return init(load_config(folder, config.dtype), config.seed)
  types = dict(dtype=jnp.float32, compute_dtype=jnp.dtype(config.dtype))
  start = pathlib.Path(config.init_from)
  if not config.init_from:
    return load_hf(folder, **types)[1]
  if not Checkpoints.present(start):
    return load_hf(resolve_model(config.init_from), **types)[1]
  model = load_hf(folder, **types)[1]
  checkpoints = Checkpoints(start)
  shapes, model = jax.tree.map(checkpoints.abstract, model), None
  model, _, _ = checkpoints.restore(checkpoints.best_step(), shapes)
  checkpoints.close()
  return model


def make_engine(config, policy: Policy, check: Callable[[], None]) -> Engine:
  """The rollout engine of a config; it calls `check` while it waits, which may raise."""
  rollout = config.rollout
  if rollout.engine == "builtin":
    return Sampler(policy.tokenizer, policy.stop_ids, rollout.width)
  return VllmEngine(
    [url.strip() for url in rollout.servers.split(",")],
    policy.tokenizer,
    policy.stop_ids,
    weights_root=rollout.weights_root,
    lag=rollout.lag,
    public_servers=rollout.public_servers,
    patience=rollout.patience,
    check=check,
  )


def sampling_params(config, step: int = 0) -> SamplingParams:
  """How a config samples at a step."""
  rollout = config.rollout
  return SamplingParams(
    rollout.max_tokens, rollout.temperature, rollout.top_p, seed=config.seed, step=step
  )


def make_solver(config, policy: Policy, engine: Engine) -> Solver:
  """Solves whole problems as config.eval says."""
  task = "srl" if config.eval.mode == "stepwise" else "rlvr"
  return Solver(
    engine=engine,
    ask=asker(policy.tokenizer, task, config.prompt.style, config.prompt.system_file),
    mode=config.eval.mode,
    params=dataclasses.replace(sampling_params(config), max_tokens=config.eval.max_tokens),
    max_turns=config.eval.max_turns,
    max_prompt_tokens=config.data.max_prompt_tokens,
  )


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
    domain, system = config.data.domain, {}
    kept, asked, opened = [], [], False
    for example in examples:
      task = example.task
      if task not in system:
        style = "think" if task == "srl" else config.prompt.style
        system[task] = prompts.system_prompt(task, style, config.prompt.system_file, domain=domain)
      messages = prompts.build_messages(
        example.problem, example.context, example.hint, system[task], domain=domain
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


def shards() -> int:
  """Devices that rows are cut over."""
  mesh = jax.sharding.get_mesh()
  return int(np.prod([mesh.shape[axis] for axis in ACT_AXES["b"]]))


class Stopped(Exception):
  """The run was asked to stop (SIGTERM or Ctrl-C)."""


class StopSignal:
  """Turns SIGTERM and Ctrl-C into a question that the loop asks where it can stop: `check()`.

  A second Ctrl-C ends the process at once.
  """

  def __init__(self):
    self.name = None
    self._before = {
      number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
    }

  def _ask(self, number, frame):
    self.name = signal.Signals(number).name
    signal.signal(signal.SIGINT, signal.default_int_handler)

  def check(self) -> None:
    """Raises Stopped once a signal has come."""
    if self.name:
      raise Stopped(self.name)

  def restore(self) -> None:
    """Gives the signals back to whoever had them."""
    for number, handler in self._before.items():
      signal.signal(number, handler)
