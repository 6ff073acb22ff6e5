"""Shared by `evaluate` and `evaluate_swe`: the model's weights, the settings, the sampling.

JAX is imported inside functions, so that errors in the flags do not wait for it.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from srl_jax import folders
from srl_jax.errors import EngineError, UserError, out_of_memory

# Settings that name the weights. They may differ if the weights' checksum is the same.
_NAMES_OF_WEIGHTS = ("model", "step")


# ---------------------------------------------------------------------------------- settings


def check_sampling(engine: str, servers: Sequence[str] | None, temperature: float) -> None:
  """Raises UserError for flags of sampling that contradict each other."""
  if (engine == "vllm") != bool(servers):
    raise UserError(
      "--servers: give the base URLs of the servers with --engine=vllm, and only then"
    )
  if temperature <= 0:
    raise UserError(f"--temperature={temperature:g}: samples need a value greater than 0")


def read_run(path: pathlib.Path, base: str | None = None) -> dict | None:
  """Returns the config of the run in a workdir, flat; None if `path` is a model."""
  from srl_jax.learner.checkpoint import Checkpoints, model_of, read_config

  if Checkpoints.present(path):
    run = read_config(path)
    run["model"] = model_of(run, base)
    return folders.flatten(run)
  if (path / "metrics.jsonl").exists():
    raise UserError(f"--model={path} is a run without a checkpoint: wait until it has saved one")
  return None


def choose(run: dict | None, flag, key: str, default):
  """Returns a setting: the flag's value, else the run's own, else the default."""
  return flag.value if flag.value is not None else (run or {}).get(key, default)


def best_step(workdir: str) -> int:
  """Returns the step of a run's best checkpoint on validation."""
  from srl_jax.learner.checkpoint import Checkpoints

  checkpoints = Checkpoints(workdir)
  step = checkpoints.best_step()
  checkpoints.close()
  return step


def model_folder(run: dict | None, model: str, base: str | None = None) -> pathlib.Path:
  """The folder with the files of --model: of a run its config's model, of adapters theirs.

  base: that folder of adapters if it was moved. Raises UserError if `model` has no other folder.
  """
  from srl_jax.learner import start
  from srl_jax.policy import hf_files

  if run:
    return hf_files.resolve_model(run["model"])
  found = start.described(model, base)
  if base and not found:
    raise UserError(f"--base={base}: {model} is a whole model; --base is for runs and adapters")
  return hf_files.resolve_model(found[1].model if found else model)


def stored_dtype(model: str, base: str | None = None) -> str:
  """Returns the computation type of the files of a model folder, hub name or peft folder."""
  from srl_jax.policy import hf_files

  return hf_files.computation_dtype(model_folder(None, model, base))


def check_same(output: pathlib.Path, settings: dict[str, Any]) -> None:
  """Raises UserError if the folder has figures of other settings than these."""
  path = output / "settings.json"
  if not path.exists():
    return
  try:
    before = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path} is not JSON ({error}); give another --output") from error
  if not isinstance(before, dict):
    raise UserError(f"{path} is not an evaluation's settings; give another --output")
  # `settings` has no checksum of the weights until they are loaded; it is then compared later.
  shared = settings.keys() & before.keys()
  same_weights = "weights" not in shared or before["weights"] == settings["weights"]
  folders.check_same_settings(
    output,
    {key: before[key] for key in shared},
    {key: settings[key] for key in shared},
    holds="an evaluation of something else",
    flag="--output",
    free=_NAMES_OF_WEIGHTS if same_weights else (),
  )


def measured_settings(output: pathlib.Path, settings: dict[str, Any]) -> dict[str, Any] | None:
  """Returns the settings of `output` if its figures are current without loading weights.

  They are if the settings are equal and the files of the weights are older; otherwise None.
  """
  path = output / "settings.json"
  if not path.exists():
    return None
  before = json.loads(path.read_text(encoding="utf-8"))  # valid JSON: check_same read it before
  same = {key: before.get(key) for key in settings} == settings
  files = _weight_files(settings)
  # st_ctime, because a file that is moved or copied here keeps its older st_mtime.
  newest = max((file.stat().st_ctime for file in files), default=float("inf"))
  return before if same and newest < path.stat().st_mtime else None


def _weight_files(settings: dict[str, Any]) -> list[pathlib.Path]:
  """Returns the files and folders of the weights: of a run's checkpoint or of a model's folder."""
  from srl_jax.policy import hf_files

  if settings["step"] is not None:
    folder = pathlib.Path(settings["model"]) / "checkpoints" / str(settings["step"])
  else:
    folder = pathlib.Path(hf_files.resolve_model(settings["model"]))
  return [folder, *folder.rglob("*")]


def claim(output: pathlib.Path, settings: dict[str, Any]) -> None:
  """Writes settings.json; raises UserError as check_same."""
  check_same(output, settings)
  folders.write_json(output / "settings.json", settings)


# ---------------------------------------------------------------------------------- sampling


def mesh_of(spec: str | None, folder: pathlib.Path):
  """Returns the mesh of a flag, a preset or sizes, for the model in `folder`.

  None: fsdp over as many devices as divide the model. Raises UserError if the sizes do not.
  """
  from srl_jax.config import MESHES
  from srl_jax.policy.hf_files import load_config
  from srl_jax.policy.sharding import check_mesh, fitting_mesh, make_mesh

  sizes = load_config(folder).sizes()
  spec = MESHES.get(spec, spec) if spec else fitting_mesh(sizes)
  check_mesh(spec, sizes)
  return make_mesh(spec)


def load_weights(
  run: dict | None, folder: pathlib.Path, settings: dict[str, Any], base: str | None = None
):
  """Returns the policy of settings["model"]; of a run, that of its best step.

  Adapters stay beside the weights, which are in the computation type, as in training.

  Args:
    run: the run's config, or None.
    folder: of `model_folder`.
    settings: with "model", "dtype" and "engine".
    base: the folder of adapters' frozen weights if it was moved.
  """
  import ml_collections

  from srl_jax.learner import start
  from srl_jax.policy.hf_files import load_config
  from srl_jax.policy.sharding import platform

  dtype = settings["dtype"]
  saved = start.saved_adapters(
    settings["model"], load_config(folder, dtype).on_platform(platform()), base
  )
  if saved:
    unstacked = start.can_share(settings["engine"])
    return start.with_base(saved, dtype, dtype, unstacked=unstacked)
  init_from = settings["model"] if run else ""
  chosen = ml_collections.ConfigDict({"init_from": init_from, "dtype": dtype})
  return start.start_weights(chosen, folder)


def make_engine(
  tokenizer, stop_ids: list[int], width: int, servers: Sequence[str] | None, root: str, shapes=()
):
  """Returns the engine that samples: vLLM's `servers`, or the built-in one.

  Args:
    tokenizer: of the model.
    stop_ids: tokens that end a response.
    width, shapes: see rollout.sampler.Sampler.
    servers: base URLs, or None for the built-in engine.
    root: folder through which the servers receive the weights.
  """
  from srl_jax.rollout.sampler import Sampler
  from srl_jax.rollout.vllm_client import VllmEngine

  if servers:
    return VllmEngine(servers, tokenizer, stop_ids, weights_root=root)
  return Sampler(tokenizer, stop_ids, width, shapes=shapes)


@contextlib.contextmanager
def sampling(engine, output: pathlib.Path, advice: str) -> Iterator[None]:
  """Holds the lock of `output` and closes the engine at the end.

  A stop, a lost engine or a lack of memory ends the command with one line; `advice` names the flags
  to lower.
  """
  import jax

  with contextlib.ExitStack() as ends:
    try:
      ends.enter_context(folders.locked(output))
      yield
    except KeyboardInterrupt:
      print(f"\nstopped; the same command continues from the files in {output}", flush=True)
      raise SystemExit(130) from None
    except EngineError as error:
      raise UserError(f"{error}. The same command continues from the files in {output}") from error
    except jax.errors.JaxRuntimeError as error:
      refusal = out_of_memory(error, advice)
      if refusal:
        raise refusal from error
      raise
    finally:
      engine.close()


def checksum(model) -> int:
  """Returns a checksum of all weights' bits, equal on every mesh: integers add up in any order."""
  import jax
  import jax.numpy as jnp

  # The sum of the bits as unsigned integers, modulo 2^32. Floating-point sums would depend on how
  # the weights are sharded.
  whole = {2: jnp.uint16, 4: jnp.uint32}  # by the bytes of a weight
  bits = lambda weight: jax.lax.bitcast_convert_type(weight, whole[weight.dtype.itemsize])
  sums = jax.jit(lambda weights: [bits(weight).sum(dtype=jnp.uint32) for weight in weights])
  total = 0
  for one in sums(jax.tree.leaves(model)):
    # The factor makes the checksum depend on the order of the weights.
    total = (31 * total + int(one)) % 2**32
  return total
