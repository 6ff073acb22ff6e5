"""The weights that a run starts from: a model, another run's, or adapters beside frozen weights.

With lora.rank the policy is frozen weights in the compute type, the base, and float32 adapters. A
checkpoint has the adapters and names the base: its folder and the SHA-256 of its weight files. They
are those of `sha256sum`, and depend neither on the type that a run computes in nor on its mesh.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from srl_jax import hosts
from srl_jax.errors import UserError
from srl_jax.learner.checkpoint import Checkpoints, Progress, model_of
from srl_jax.policy import lora, peft_files
from srl_jax.policy.file_sums import weight_hashes
from srl_jax.policy.hf_files import load_config, resolve_model
from srl_jax.policy.lora import Lora
from srl_jax.policy.model import ModelConfig, Qwen2, abstract, init
from srl_jax.policy.sharding import platform
from srl_jax.policy.weights import load_hf

RANDOM = "random"  # of init_from: the model's architecture with random weights


class Base(NamedTuple):
  """Frozen weights by their files.

  Fields: model, their name or folder, or RANDOM; sha256, {file: hash}.
  """

  model: str
  sha256: dict[str, str]

  def json(self) -> dict:
    """As a checkpoint has it."""
    return self._asdict()


class Saved(NamedTuple):
  """The adapters of a run's best step or of a peft folder, and what they belong to."""

  adapters: Lora
  base: Base


# ---------------------------------------------------------------------------------- shapes


def adapter_shape(config) -> lora.Shape | None:
  """The adapters that a run of `config` (its group lora) trains; None if it trains all weights."""
  group = config.get("lora") or {}  # a run of before there was LoRA has no such group
  if not group.get("rank"):
    return None
  return lora.Shape(group["rank"], float(group["alpha"]), lora.TARGETS[group["targets"]])


def can_share(engine: str) -> bool:
  """Whether the engine can use the frozen weights as they are on the mesh that is set.

  Where they are sharded along fsdp the built-in sampler needs them gathered, in a copy.
  """
  return engine == "builtin" and jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1


def policy_shapes(config, architecture: ModelConfig) -> Qwen2:
  """The policy of a run with jax.ShapeDtypeStruct in place of its arrays."""
  shape = adapter_shape(config)
  if shape is None:
    return abstract(architecture)
  base = lora.abstract_base(architecture, unstacked=can_share(config.rollout.engine))
  return lora.join(lora.abstract(shape, architecture), base)


# ---------------------------------------------------------------------------------- the start


def start_policy(config, folder: pathlib.Path) -> tuple[Qwen2, Base | None]:
  """The policy before the first step, and its base if it has adapters.

  Args:
    config: of the run.
    folder: config.model on disk.
  """
  architecture = load_config(folder, config.dtype).on_platform(platform())
  if adapter_shape(config) is None:
    return start_weights(config, folder), None
  base = base_of(config, folder)
  adapters = start_adapters(config, architecture, base)
  return lora.join(adapters, load_base(config, base, folder)), base


def start_weights(config, folder: pathlib.Path) -> Qwen2:
  """The float32 weights that a run without adapters starts from; arguments as of start_policy."""
  architecture = load_config(folder, config.dtype).on_platform(platform())
  place = config.init_from
  if place == RANDOM:
    return init(architecture, config.seed)
  saved = saved_adapters(place, architecture) if place else None
  if saved:
    return merge(saved, config.dtype, jnp.float32)
  if place and Checkpoints.present(pathlib.Path(place)):
    return best_weights(place, abstract(architecture))
  folder = _model_of_init_from(place) if place else folder
  return load_hf(folder, dtype=jnp.float32, compute_dtype=jnp.dtype(config.dtype))[1]


def start_adapters(config, architecture: ModelConfig, base: Base) -> Lora:
  """The adapters that a run starts from: new ones, or those of init_from.

  Raises UserError if those have another shape than the config's, or belong to other weights.
  """
  shape = adapter_shape(config)
  saved = saved_adapters(config.init_from, architecture) if config.init_from else None
  if saved is None:
    return lora.init(shape, architecture, config.seed)
  found = saved.adapters.shape
  if found != shape:
    raise UserError(
      f"init_from: the adapters of {config.init_from} have rank {found.rank}, alpha {found.alpha:g}"
      f" and are beside {', '.join(found.targets)}; set lora.rank, lora.alpha and lora.targets to"
      " these, or export them with --merge and give that folder as model"
    )
  check_same_base(f"init_from: {config.init_from}", saved.base, base)
  return saved.adapters


def start_reference(config, folder: pathlib.Path, policy: Qwen2) -> Qwen2:
  """The policy of the KL term, which is the one that the run started from.

  Args:
    config, folder: as of start_policy.
    policy: of the run; with adapters its frozen weights are the reference's too.
  """
  _, frozen = lora.split(policy)
  if frozen is None:
    return start_weights(config, folder)
  return lora.join(start_adapters(config, policy.config, base_of(config, folder)), frozen)


# ---------------------------------------------------------------------------------- the base


def base_of(config, folder: pathlib.Path) -> Base:
  """The frozen weights of a run that starts: init_from if that is a model, else config.model.

  Raises UserError for the weights of a run, which neither peft nor vLLM could load.
  """
  place = config.init_from
  if place == RANDOM:
    return Base(RANDOM, {})
  model = base_model(config)
  if model == config.model:
    return identify(model, folder)
  if Checkpoints.present(pathlib.Path(place)):
    raise UserError(
      f"init_from: {place} trained all weights; adapters belong to a folder that peft and vLLM can"
      f" load: python -m srl_jax.export --workdir={place}, and give its folder as model"
    )
  return identify(place, _model_of_init_from(place))


def _model_of_init_from(place: str) -> pathlib.Path:
  """The folder of a model that init_from names, which is no run; UserError if there is none."""
  try:
    return resolve_model(place)
  except UserError as error:
    raise UserError(f"init_from: no run with a checkpoint is there; {error}") from error


def base_model(config) -> str:
  """Name or folder of the weights beside a run's adapters."""
  place = config.init_from
  return config.model if not place or place == RANDOM or described(place) else place


def identify(model: str, folder: pathlib.Path) -> Base:
  """The name of a model with the hashes of its files; process 0 reads them for all."""
  return Base(model, hosts.broadcast(weight_hashes(folder) if hosts.is_writer() else None))


def check_same_base(place: str, wanted: Base, found: Base) -> None:
  """Raises UserError unless both are the same weights, as far as hashes are known.

  place: of the adapters, for the message.
  """
  known = wanted.sha256 or wanted.model == RANDOM  # a peft folder of other tools has no hashes
  if known and (wanted.sha256, wanted.model == RANDOM) != (found.sha256, found.model == RANDOM):
    raise UserError(
      f"{place}: its adapters belong to {wanted.model} with other weights than {found.model} has"
      f" now (SHA-256 {_short(wanted)}, now {_short(found)}); give it those weights again"
    )


def _short(base: Base) -> str:
  parts = (f"{name} {found[:12]}" for name, found in sorted(base.sha256.items())[:2])
  return ", ".join(parts) or "of none"


def load_base(config, base: Base, folder: pathlib.Path) -> Qwen2:
  """The frozen weights of a run in its compute type, unstacked where the sampler shares them."""
  if base.model == RANDOM:
    weights = init(load_config(folder, config.dtype), config.seed)
    weights = jax.tree.map(lambda weight: weight.astype(config.dtype), weights)
  else:
    place = _folder_of(base, config, folder)
    weights = load_hf(place, dtype=jnp.dtype(config.dtype))[1]
  return lora.unstack(weights) if can_share(config.rollout.engine) else weights


def restore_base(config, progress: Progress, folder: pathlib.Path, place) -> Qwen2:
  """The frozen weights beside which a checkpoint's adapters were trained.

  place: of the checkpoint. Raises UserError if the files are other ones now.
  """
  base = Base(**progress.base)
  if base.model != RANDOM:
    check_same_base(place, base, identify(base.model, _folder_of(base, config, folder)))
  return load_base(config, base, folder)


def _folder_of(base: Base, config, folder: pathlib.Path) -> pathlib.Path:
  return folder if base.model == config.model else resolve_model(base.model)


# ---------------------------------------------------------------------------------- saved weights


def described(place: str, moved: str | None = None) -> tuple[lora.Shape, Base] | None:
  """The adapters of a run's workdir or of a peft folder; None if `place` has none.

  moved: folder of their base if it is no longer where it was.
  """
  if peft_files.is_peft(place):
    given = peft_files.read_config(place)
    return given.shape, Base(moved or given.model, given.sha256)
  if not Checkpoints.present(pathlib.Path(place)):
    return None
  checkpoints = Checkpoints(pathlib.Path(place))
  progress = checkpoints.last_progress()
  checkpoints.close()
  if progress.base is None:
    return None
  base = Base(**progress.base)
  # A relative path of the config is one from the folder in which the run was started.
  if base.model != RANDOM and (moved or base.model == progress.config["model"]):
    base = base._replace(model=model_of(progress.config, moved))
  return adapter_shape(progress.config), base


def saved_adapters(place: str, architecture: ModelConfig, moved: str | None = None) -> Saved | None:
  """The adapters of a run's best step or of a peft folder; None if `place` has none.

  Args:
    architecture: of the model that they belong to.
    moved: as of `described`.
  """
  found = described(place, moved)
  if found is None:
    return None
  shape, base = found
  if peft_files.is_peft(place):
    return Saved(peft_files.load(place, architecture), base)
  return Saved(best_weights(place, lora.abstract(shape, architecture)), base)


def with_base(saved: Saved, dtype: str, weights_dtype, unstacked: bool = False) -> Qwen2:
  """The policy of saved adapters, with its base in `weights_dtype`, computing in `dtype`.

  Raises UserError if the base's files are other ones now, or it had random weights.
  """
  if saved.base.model == RANDOM:
    raise UserError("the adapters were trained beside random weights, which are in no folder")
  folder = resolve_model(saved.base.model)
  check_same_base("the adapters", saved.base, identify(saved.base.model, folder))
  _, weights = load_hf(folder, dtype=weights_dtype, compute_dtype=jnp.dtype(dtype))
  return lora.join(saved.adapters, lora.unstack(weights) if unstacked else weights)


def merge(saved: Saved, dtype: str, weights_dtype) -> Qwen2:
  """Whole weights in `weights_dtype`, computing in `dtype`, that contain the adapters."""
  return lora.merge(with_base(saved, dtype, jnp.dtype(dtype)), weights_dtype)


def best_weights(workdir: str, shapes):
  """What a run had trained at the step with the best validation score.

  shapes: of what it trains, policy.model.abstract or policy.lora.abstract.
  """
  checkpoints = Checkpoints(pathlib.Path(workdir))
  trained, _, _ = checkpoints.restore(hosts.broadcast(checkpoints.best_step()), shapes)
  checkpoints.close()
  return trained
