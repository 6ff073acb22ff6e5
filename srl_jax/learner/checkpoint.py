"""Checkpoints: weights, moments and progress, so that a killed run continues exactly.

Of a policy with adapters the weights are the adapters alone; the progress names the frozen rest.
Orbax writes a checkpoint under a temporary name and renames it when it is whole, so a half-written
one is never read. Checksums of the arrays are written with it and compared when it is restored.
A save copies the arrays to the host; they are written in the background while training continues.
"""

import contextlib
import dataclasses
import io
import json
import logging
import math
import pathlib
import shutil
import sys
import warnings
import zlib

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from srl_jax import __version__, folders, hosts
from srl_jax.errors import UserError
from srl_jax.learner.checksums import checksums, differing
from srl_jax.learner.update import TrainState

# When orbax cannot read or write a part of a checkpoint, it abandons the tasks of the other parts.
# Python, asyncio and tensorstore's threads warn of them at length; the user sees our one message.
warnings.filterwarnings("ignore", "coroutine .*Handler.* was never awaited", RuntimeWarning)
never_retrieved = lambda record: "was never retrieved" in record.getMessage()
logging.getLogger("asyncio").addFilter(lambda record: not never_retrieved(record))


def _report_unraisable(unraisable, report=sys.unraisablehook):
  """A sys.unraisablehook that leaves out the tasks whose event loop has ended."""
  if str(unraisable.exc_value) != "Event loop is closed":
    report(unraisable)


sys.unraisablehook = _report_unraisable
keeping = ocp.training.preservation_policies
REMEDY = "remove this folder: the checkpoint before it is then the last one"


@dataclasses.dataclass
class Progress:
  """The content of a checkpoint besides the TrainState; plain JSON.

  Fields: queue, the PromptQueue.state from which the next batch is drawn; scores, {step: score} of
  validation so far; before, the benchmark's figures of the untrained model, or None; seconds, of
  work so far, over all restarts; done, whether a stop rule has ended the run; data, what the run is
  trained on (run_data.fingerprint), and config, the run's (`config_json`): both are None in
  checkpoints of before they were kept; base, the frozen weights beside which adapters are trained
  (start.Base.json), None where all weights are.
  """

  queue: dict | None = None
  scores: dict[str, float] = dataclasses.field(default_factory=dict)
  before: dict | None = None
  seconds: float = 0.0
  done: bool = False
  data: dict | None = None
  config: dict | None = None
  base: dict | None = None


# ---------------------------------------------------------------------------------- the config


def config_json(config) -> dict:
  """The config of a run as config.json and its checkpoints have it.

  It has the package's version and the model's folder as an absolute path, "" for a name on the hub.
  """
  return {"version": __version__, "model_folder": folders.absolute(config.model)} | config.to_dict()


def model_of(run: dict, moved: str | None = None) -> str:
  """The model that a run started from: a folder here, or a name on the hub.

  Args:
    run: the run's config, from read_config.
    moved: the folder of the model if it is no longer where it was, a flag's value.
  """
  is_here = pathlib.Path(run["model"]).expanduser().is_dir()
  return moved or (run["model"] if is_here else run.get("model_folder") or run["model"])


def write_config(workdir: pathlib.Path, config) -> None:
  """Writes config.json."""
  folders.write_json(workdir / "config.json", config_json(config))


def read_config(workdir: pathlib.Path) -> dict:
  """The config of the run in `workdir`, nested, with the `version` that wrote it.

  It is in config.json. Where that file is missing or damaged, the run's last checkpoint has it.
  Raises UserError if neither can be read.
  """
  path = workdir / "config.json"
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
    fault = None if isinstance(config, dict) else "no run's config"
  except FileNotFoundError:
    fault = "missing"
  except (ValueError, RecursionError) as error:
    fault = f"not JSON ({error})"
  if fault:
    config = saved_config(workdir)
  if config is None:
    raise UserError(f"{path}: {fault}; copy it again or give another workdir")
  return {"version": "0.1.0"} | config  # 0.1.0 wrote none


def saved_config(workdir: pathlib.Path) -> dict | None:
  """The config in the last checkpoint that can be read; None if there is none."""
  if not any((workdir / "checkpoints").glob("[0-9]*/_CHECKPOINT_METADATA")):
    return None  # orbax would warn of a folder without this file
  try:
    checkpoints = Checkpoints(workdir)
    try:
      return checkpoints.last_progress().config
    finally:
      checkpoints.close()
  except UserError:
    return None


# ---------------------------------------------------------------------------------- checkpoints


class Checkpoints:
  """The checkpoints of a run: the last `keep` and the one with the best validation score.

  Raises UserError if the score of one cannot be read.
  """

  def __init__(self, workdir: pathlib.Path, keep: int = 1):
    self.folder = pathlib.Path(workdir).resolve() / "checkpoints"
    for step in _damaged_scores(self.folder):
      raise UserError(f"{self.folder / str(step)}: its score is damaged; {REMEDY}")
    best = keeping.BestN(
      get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False
    )
    policy = keeping.AnyPreservationPolicy([keeping.LatestN(keep), best])
    self._checkpointer = ocp.training.Checkpointer(self.folder, preservation_policy=policy)
    self._writing = None  # what save_checkpointables_async returned

  @staticmethod
  def present(workdir: pathlib.Path) -> bool:
    """Whether a folder holds a run's checkpoints."""
    return bool(_steps_in(pathlib.Path(workdir) / "checkpoints"))

  def save(self, state: TrainState, progress: Progress, score: float | None = None) -> None:
    """Saves under state.step, unless that step is there; state.model is what is trained.

    Returns when the arrays are on the host and may be donated; `wait` until they are on disk. Up to
    then the checkpoint before is kept. The save before is waited for.
    """
    # Not written twice: the second save would have no score, and a kill during it would lose both.
    if state.step in self.steps():
      return
    sums = {"model": checksums(state.model), "moments": checksums(state.moments)}
    with self._full_disk_in_one_line():
      self._writing = self._checkpointer.save_checkpointables_async(
        state.step,
        dict(model=state.model, moments=state.moments, progress=_as_bytes(progress, sums)),
        metrics=None if score is None else {"score": float(score)},
      )

  def wait(self) -> None:
    """Returns when the last save is on disk; raises what went wrong with it."""
    writing, self._writing = self._writing, None
    if writing is not None:
      with self._full_disk_in_one_line():
        writing.result()

  @contextlib.contextmanager
  def _full_disk_in_one_line(self):
    """Raises UserError for a save that failed for lack of room on the disk."""
    try:
      yield
    except Exception as error:  # tensorstore raises a ValueError
      if not folders.is_disk_full(error):
        raise
      raise UserError(
        f"{self.folder}: no space left on the disk for a checkpoint; make room, or keep fewer"
        " (train.keep); the same command then continues from the last whole checkpoint"
      ) from error

  def steps(self) -> list[int]:
    """Steps that can be restored, ascending."""
    self.wait()
    return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

  def best_step(self) -> int | None:
    """The step with the best validation score, the later of equals; without scores the last.

    Raises UserError if a checkpoint with a score is damaged.
    """
    self.wait()
    best = None
    for checkpoint in self._checkpointer.checkpoints:
      if checkpoint.metrics:
        # Read from the progress, which has a checksum; orbax's metrics have none.
        scores = self.progress(checkpoint.step).scores
        score = scores.get(str(checkpoint.step), checkpoint.metrics["score"])
        found = score, checkpoint.step
        best = max(best, found) if best else found
    return best[1] if best else max(self.steps(), default=None)

  def restore(self, step: int, model, moments=None):
    """(model, moments, Progress) of a step.

    Args:
      model, moments: what is trained and its moments, trees of arrays or of what stands for them
        (model.abstract, jax.eval_shape), in whose layout on the mesh that is set they come back;
        without moments only the model is read and None stands in their place.

    Raises UserError when the files are damaged, or of another model. With several processes all
    must call this.
    """
    wanted = {"model": jax.tree.map(_described, model), "progress": None}
    if moments is not None:
      wanted["moments"] = jax.tree.map(_described, moments)
    fault, found, sums = None, {}, {}
    try:
      found, sums = self._load(step, wanted)
    except UserError as error:
      fault = str(error)
    # Each process reads its own shards, so one may fail alone. All raise together, or the others
    # would wait for it in the next collective.
    faults = list(filter(None, hosts.all_gather_json(fault)))
    if faults:
      raise UserError(faults[0])
    for part in ("model", "moments"):  # a fixed order: `differing` is a collective
      damaged = differing(found[part], sums[part]) if part in wanted and part in sums else []
      if damaged:
        raise UserError(
          f"{self.folder / str(step)}: damaged: other numbers than were saved in {part}"
          f" ({', '.join(damaged[:3])}{', ...' if damaged[3:] else ''}); {REMEDY}"
        )
    return found["model"], found.get("moments"), found["progress"]

  def restore_last(self, model, moments):
    """(step, model, moments, Progress) of the last checkpoint that is whole; as `restore`.

    A damaged one is named on stderr and renamed to STEP.damaged, so that the run can save that step
    again. Raises UserError if none can be restored; then nothing is renamed.
    """
    faults = {}
    for step in reversed(hosts.broadcast(self.steps())):
      try:
        found = self.restore(step, model, moments)
      except UserError as error:
        faults[step] = str(error)  # not the error: its traceback would keep the arrays in memory
        continue
      # Renamed only after an earlier one is restored: if none can be, the user may repair them.
      for damaged, fault in faults.items():
        _set_aside(self.folder, damaged, f"{fault}. Continuing from step {step}")
      self._checkpointer.reload()
      return step, *found
    raise UserError(next(iter(faults.values())))

  def progress(self, step: int) -> Progress:
    """The Progress of a step alone; its arrays are not read. Raises as `restore`."""
    return self._load(step, {"progress": None})[0]["progress"]

  def last_progress(self) -> Progress:
    """The Progress of the last step for which it can be read. Raises UserError if there is none."""
    fault = None
    for step in reversed(self.steps()):
      try:
        return self.progress(step)
      except UserError as error:
        fault = fault or error
    raise fault or UserError(f"{self.folder}: no checkpoint that was saved as a whole")

  def _load(self, step: int, wanted: dict) -> tuple[dict, dict[str, list[int]]]:
    """(What is wanted of a step, with its Progress; the checksums of its parts)."""
    self.wait()
    try:
      # When a load fails, orbax's other threads print tracebacks.
      with contextlib.redirect_stderr(io.StringIO()):
        found = self._checkpointer.load_checkpointables(step, wanted)
      progress, sums = _from_bytes(found["progress"])
      return found | {"progress": progress}, sums
    except jax.errors.JaxRuntimeError:
      raise  # the device's memory, not the files
    except Exception as error:  # orbax and tensorstore find damage in many ways
      raise UserError(
        f"{self.folder / str(step)}: cannot be read as a checkpoint of this model"
        f" ({_reason(error)}). If its files are damaged, {REMEDY}"
      ) from error

  def close(self) -> None:
    try:
      self.wait()
    finally:
      with self._full_disk_in_one_line():
        self._checkpointer.close()


def _reason(error: Exception) -> str:
  """Returns the innermost message of a chain of errors, which is tensorstore's, shortened."""
  while error.__cause__ or error.__context__:
    error = error.__cause__ or error.__context__
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def set_aside_damaged_scores(workdir: pathlib.Path) -> None:
  """Renames the checkpoints with scores that cannot be read, if others are left; a collective."""
  folder = pathlib.Path(workdir).resolve() / "checkpoints"
  damaged = hosts.broadcast(_damaged_scores(folder))
  # With none left the run would start anew over them; Checkpoints raises instead.
  if set(damaged) != set(_steps_in(folder)):
    for step in damaged:
      _set_aside(folder, step, f"{folder / str(step)}: its score is damaged. It is left out")


def _set_aside(folder: pathlib.Path, step: int, message: str) -> None:
  """Renames a damaged checkpoint to STEP.damaged, with a message on stderr; a collective."""
  if hosts.is_writer():
    print(f"{message}; renamed to {step}.damaged", file=sys.stderr)
    shutil.rmtree(folder / f"{step}.damaged", ignore_errors=True)
    (folder / str(step)).rename(folder / f"{step}.damaged")
  hosts.barrier()


def _steps_in(folder: pathlib.Path) -> list[int]:
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _damaged_scores(folder: pathlib.Path) -> list[int]:
  """The steps with a file of metrics that orbax could not read: its constructor would crash."""
  damaged = []
  for step in _steps_in(folder):
    path = folder / str(step) / "metrics" / "metrics"
    try:
      if path.exists() and not math.isfinite(json.loads(path.read_text("utf-8"))["score"]):
        damaged.append(step)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
      damaged.append(step)
  return damaged


def _described(leaf) -> jax.ShapeDtypeStruct:
  """The shape and type of an array, with a sharding on real devices.

  jax.eval_shape gives shardings on an abstract mesh, which orbax cannot place arrays on.
  """
  mesh, layout = jax.sharding.get_mesh(), leaf.sharding
  if not mesh.empty:
    layout = jax.sharding.NamedSharding(mesh, layout.spec if layout else jax.P())
  elif layout is None:
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)


def _as_bytes(progress: Progress, sums: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """The JSON text as one array, because orbax writes a file for each leaf, and its CRC-32."""
  text = json.dumps(dataclasses.asdict(progress) | {"checksums": sums}).encode()
  return {"json": np.frombuffer(text, np.uint8), "crc32": np.array([zlib.crc32(text)], np.uint32)}


def _from_bytes(stored: dict) -> tuple[Progress, dict[str, list[int]]]:
  """(Progress, checksums of the parts); checkpoints of earlier versions have no checksums."""
  text = np.asarray(stored["json"]).tobytes()
  if "crc32" in stored and zlib.crc32(text) != int(stored["crc32"][0]):
    raise ValueError("the run's progress has another checksum than was saved")
  values = json.loads(text)
  progress = Progress()
  for name in vars(progress):  # earlier versions stored more
    if name not in ("data", "config", "base") or name in values:
      setattr(progress, name, values[name])
  return progress, values.get("checksums", {})
