"""What `evaluate` and `evaluate_swe` share: the model that is measured, its settings, the sampling.

Imports of JAX are inside the functions: a mistake in the flags must not wait for it.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from srl_jax import folders
from srl_jax.errors import EngineError, UserError, out_of_memory

# Names of the weights. They may change as long as the weights' checksum is the same.
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


def read_run(path: pathlib.Path) -> dict | None:
  """The config of the run in a workdir, flat; None if `path` is a model."""
  from srl_jax.learner.checkpoint import Checkpoints, read_config

  if Checkpoints.present(path):
    return folders.flatten(read_config(path))
  if (path / "metrics.jsonl").exists():
    raise UserError(f"--model={path}: a run without a checkpoint; wait until it has saved one")
  return None


def choose(run: dict | None, flag, key: str, default):
  """A setting: the flag's value, else the run's own, else the default."""
  return flag.value if flag.value is not None else (run or {}).get(key, default)


def best_step(workdir: str) -> int:
  """The step of a run with the best validation score."""
  from srl_jax.learner.checkpoint import Checkpoints

  checkpoints = Checkpoints(workdir)
  step = checkpoints.best_step()
  checkpoints.close()
  return step


def stored_dtype(model: str) -> str:
  """The type of computation that the files of a model folder or hub name state."""
  from srl_jax.policy import hf_files

  return hf_files.computation_dtype(hf_files.resolve_model(model))


def check_same(output: pathlib.Path, settings: dict[str, Any]) -> None:
  """Raises UserError if the folder holds figures of other settings than these."""
  path = output / "settings.json"
  if not path.exists():
    return
  try:
    before = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: not JSON ({error}); give another --output") from error
  if not isinstance(before, dict):
    raise UserError(f"{path}: not an evaluation's settings; give another --output")
  shared = settings.keys() & before.keys()  # the weights' checksum is missing before they load
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
  """The settings with which `output` was measured, if they are these and the weights' files are
  older: its figures then need no loading of the weights. None otherwise.
  """
  path = output / "settings.json"
  if not path.exists():
    return None
  before = json.loads(path.read_text(encoding="utf-8"))  # check_same has read it
  same = {key: before.get(key) for key in settings} == settings
  files = _weight_files(settings)
  # st_ctime, as a file that is moved or copied here keeps the older st_mtime.
  newest = max((file.stat().st_ctime for file in files), default=float("inf"))
  return before if same and newest < path.stat().st_mtime else None


def _weight_files(settings: dict[str, Any]) -> list[pathlib.Path]:
  """The files and folders of the weights: of a run's checkpoint, or of a model's folder."""
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


def mesh_of(spec: str | None):
  """The mesh of a flag: a preset or sizes; None: fsdp over all devices."""
  from srl_jax import hosts
  from srl_jax.config import MESHES
  from srl_jax.policy.sharding import make_mesh

  spec = spec or f"fsdp={len(hosts.devices())}"
  return make_mesh(MESHES.get(spec, spec))


def load_weights(run: dict | None, folder: pathlib.Path, settings: dict[str, Any]):
  """The weights of settings["model"]: of a run those of its best step; `folder` has its files."""
  import ml_collections

  from srl_jax.learner import setup

  init_from = settings["model"] if run else ""
  chosen = ml_collections.ConfigDict({"init_from": init_from, "dtype": settings["dtype"]})
  return setup.initial_weights(chosen, folder)


def make_engine(
  tokenizer, stop_ids: list[int], width: int, servers: Sequence[str] | None, root: str, shapes=()
):
  """The engine that samples: vLLM's `servers`, or the built-in one.

  Args:
    width, shapes: see rollout.sampler.Sampler.
    root: folder through which the weights go to the servers.
  """
  from srl_jax.rollout.sampler import Sampler
  from srl_jax.rollout.vllm_client import VllmEngine

  if servers:
    return VllmEngine(servers, tokenizer, stop_ids, weights_root=root)
  return Sampler(tokenizer, stop_ids, width, shapes=shapes)


@contextlib.contextmanager
def sampling(engine, output: pathlib.Path, advice: str) -> Iterator[None]:
  """Holds the lock of `output`, and closes the engine at the end.

  A stop, a lost engine or a lack of memory becomes one line; `advice` names the flags to lower.
  """
  import jax

  with contextlib.ExitStack() as ends:
    try:
      ends.enter_context(folders.locked(output))
      yield
    except KeyboardInterrupt:
      print(f"\nstopped; the same command continues from what {output} holds", flush=True)
      raise SystemExit(130) from None
    except EngineError as error:
      raise UserError(f"{error}. The same command continues from what {output} holds") from error
    except jax.errors.JaxRuntimeError as error:
      refusal = out_of_memory(error, advice)
      if refusal:
        raise refusal from error
      raise
    finally:
      engine.close()


def checksum(model) -> int:
  """Of all weights' bits: the same on every mesh, since whole numbers add in any order."""
  import jax
  import jax.numpy as jnp

  bits = lambda weight: jax.lax.bitcast_convert_type(weight, jnp.uint32)
  sums = jax.jit(lambda weights: [bits(weight).sum(dtype=jnp.uint32) for weight in weights])
  total = 0
  for one in sums(jax.tree.leaves(model)):
    # The factor makes the order of the weights count.
    total = (31 * total + int(one)) % 2**32
  return total
