"""Checkpoints: weights, moments and progress, so that a killed run continues exactly.

Orbax writes a checkpoint under a temporary name and renames it when it is whole, so a half-written
one is never read.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from srl_jax import __version__, folders
from srl_jax.errors import UserError
from srl_jax.learner.update import TrainState

keeping = ocp.training.preservation_policies


@dataclasses.dataclass
class Progress:
  """What a checkpoint holds besides the TrainState; plain JSON.

  Fields: queue, the PromptQueue.state from which the next batch is drawn; scores, {step: score} of
  validation so far; before, the benchmark's figures of the untrained model, or None; seconds, of
  work so far, over all restarts; done, whether a stop rule has ended the run; data, what the run is
  trained on (run_data.fingerprint), or None in checkpoints of before that was kept.
  """

  queue: dict | None = None
  scores: dict[str, float] = dataclasses.field(default_factory=dict)
  before: dict | None = None
  seconds: float = 0.0
  done: bool = False
  data: dict | None = None


def write_config(workdir: pathlib.Path, config) -> None:
  """Writes config.json, with the version of the package that runs it."""
  folders.write_json(workdir / "config.json", {"version": __version__} | config.to_dict())


def read_config(workdir: pathlib.Path) -> dict:
  """The config of the run in `workdir`, nested, with the `version` that wrote it.

  Raises UserError where config.json is damaged.
  """
  path = workdir / "config.json"
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{path}: not JSON ({error}); copy it again or give another workdir") from error
  if not isinstance(config, dict):
    raise UserError(f"{path}: no run's config; copy it again or give another workdir")
  return {"version": "0.1.0"} | config  # 0.1.0 wrote none


class Checkpoints:
  """The checkpoints of a run: the last `keep` and the one with the best validation score."""

  def __init__(self, workdir: pathlib.Path, keep: int = 1):
    self.folder = pathlib.Path(workdir).resolve() / "checkpoints"
    best = keeping.BestN(
      get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False
    )
    policy = keeping.AnyPreservationPolicy([keeping.LatestN(keep), best])
    self._checkpointer = ocp.training.Checkpointer(self.folder, preservation_policy=policy)

  @staticmethod
  def present(workdir: pathlib.Path) -> bool:
    """Whether a folder holds a run's checkpoints."""
    folder = pathlib.Path(workdir) / "checkpoints"
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())

  def save(self, state: TrainState, progress: Progress, score: float | None = None) -> None:
    """Saves under state.step, unless that step is there; returns when it is on disk."""
    if state.step in self.steps():
      return  # the same weights; writing them again would lose their score, and them if killed
    self._checkpointer.save_checkpointables(
      state.step,
      dict(model=state.model, moments=state.moments, progress=_as_bytes(progress)),
      metrics=None if score is None else {"score": float(score)},
    )

  def steps(self) -> list[int]:
    """Steps that can be restored, ascending."""
    return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

  def best_step(self) -> int | None:
    """The step with the best validation score, the later of equals; without scores the last."""
    best = None
    for checkpoint in self._checkpointer.checkpoints:
      if checkpoint.metrics:
        found = checkpoint.metrics["score"], checkpoint.step
        best = max(best, found) if best else found
    return best[1] if best else max(self.steps(), default=None)

  def restore(self, step: int, model, moments=None):
    """(model, moments, Progress) of a step.

    Args:
      model, moments: trees of arrays, or of what stands for them (model.abstract, jax.eval_shape),
        in whose layout on the mesh that is set they come back; without moments only the model is
        read and None stands in their place.

    Raises UserError when the files are damaged, or of another model.
    """
    wanted = {"model": jax.tree.map(_described, model), "progress": None}
    if moments is not None:
      wanted["moments"] = jax.tree.map(_described, moments)
    found = self._load(step, wanted)
    return found["model"], found.get("moments"), found["progress"]

  def progress(self, step: int) -> Progress:
    """The Progress of a step alone; its arrays are not read. Raises as `restore`."""
    return self._load(step, {"progress": None})["progress"]

  def _load(self, step: int, wanted: dict) -> dict:
    try:
      found = self._checkpointer.load_checkpointables(step, wanted)
      return found | {"progress": _from_bytes(found["progress"])}
    except (KeyError, OSError, TypeError, ValueError) as error:  # as orbax and tensorstore find it
      reason = " ".join(str(error).split())[:200]
      raise UserError(
        f"{self.folder / str(step)}: cannot be read as a checkpoint of this model"
        f" ({type(error).__name__}: {reason}). If its files are damaged, remove this folder: the"
        " checkpoint before it is then the last one"
      ) from error

  def close(self) -> None:
    self._checkpointer.close()


def _described(leaf) -> jax.ShapeDtypeStruct:
  """What orbax needs to know of an array: its layout on real devices, not on a mesh of names."""
  mesh, layout = jax.sharding.get_mesh(), leaf.sharding
  if not mesh.empty:
    layout = jax.sharding.NamedSharding(mesh, layout.spec if layout else jax.P())
  elif layout is None:
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)


def _as_bytes(progress: Progress) -> dict[str, np.ndarray]:
  """One array of JSON text: in a tree every number would be a file of its own."""
  text = json.dumps(dataclasses.asdict(progress))
  return {"json": np.frombuffer(text.encode(), np.uint8)}


def _from_bytes(stored: dict) -> Progress:
  values = json.loads(np.asarray(stored["json"]).tobytes())
  progress = Progress()
  for name in vars(progress):  # earlier versions stored more
    if name != "data" or name in values:
      setattr(progress, name, values[name])
  return progress
