"""The workdir of a run: the same config continues the run in it, another config is refused."""

import json
import pathlib

from srl_jax import __version__, folders, hosts
from srl_jax.config import defaults
from srl_jax.errors import UserError
from srl_jax.learner.checkpoint import Checkpoints, read_config, saved_config, write_config

# A run may be continued with other values of these; any other key makes it another run.
FREE_KEYS = (
  "mesh",
  "data.accept_change",
  "rollout.servers",
  "rollout.public_servers",
  "rollout.weights_root",
  "rollout.patience",
  "log.report",
  "log.tensorboard",
  "log.wandb",
  "train.steps",
  "train.epochs",
  "train.save_every",
  "train.keep",
)


def claim(workdir: pathlib.Path, config) -> None:
  """Makes `workdir` this config's: a new folder, or one that holds a run of the same config.

  Raises UserError when it holds another run's checkpoints, with the keys that differ, or more
  steps than the config's train.steps.
  """
  if Checkpoints.present(workdir):
    check_same_run(workdir, config)
    saved = saved_config(workdir)
    # Both are compared: config.json can be edited or copied, the checkpoint's config cannot.
    if saved is not None:
      check_same_run(workdir, config, saved)
    step = _last_step(workdir)
    if 0 < config.train.steps < step:
      raise UserError(
        f"workdir {workdir} has {step} steps already, more than train.steps={config.train.steps}; "
        "give another --workdir"
      )
  # Written by process 0 after the checks, with the new values of FREE_KEYS.
  if hosts.is_writer():
    workdir.mkdir(parents=True, exist_ok=True)
    write_config(workdir, config)


def length(config) -> dict[str, int]:
  """The settings of a run's length: it ends after `steps`, or without them after its epochs."""
  return {"steps": config.train.steps, "epochs": config.train.epochs}


def finished(workdir: pathlib.Path, config) -> dict | None:
  """The summary of the run in a claimed workdir, if it ended with the length that is wanted now.

  A damaged summary counts as none: the run then measures its last checkpoint again.
  """
  path = workdir / "summary.json"
  if not path.exists() or not Checkpoints.present(workdir):
    return None
  try:
    summary = json.loads(path.read_text(encoding="utf-8"))
    # A run that ends by its epochs or by train.stop_at has no number of steps in its config.
    same_length = summary["train"] == length(config)
    done = same_length and summary["steps"] == _last_step(workdir)
  except (ValueError, KeyError, TypeError, RecursionError):
    return None
  return summary if done else None


def _last_step(workdir: pathlib.Path) -> int:
  folders = (workdir / "checkpoints").iterdir()
  return max(int(path.name) for path in folders if path.name.isdigit())


def check_same_run(workdir: pathlib.Path, config, before: dict | None = None) -> None:
  """Raises UserError if the run in `workdir` is of another config or another version.

  Args:
    workdir: of the run.
    config: of this start.
    before: the run's config, from its checkpoint; by default read_config's.
  """
  before = dict(before or read_config(workdir))
  version = before.pop("version")
  before.pop("model_folder", None)
  if version != __version__:
    raise UserError(
      f"workdir {workdir} holds a run of srl_jax {version}, which samples and trains in another way"
      f" than this version, {__version__}: continue it with {version}, or give another --workdir"
      " (init_from takes its weights)"
    )
  # A key that is newer than the run had its default's behaviour then.
  before = folders.flatten(defaults()) | folders.flatten(before)
  folders.check_same_settings(
    workdir,
    before,
    folders.flatten(config),
    holds="a run of another config",
    flag="--workdir",
    free=FREE_KEYS,
  )
