"""Everything that a page shows of its runs, as one JSON object."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from srl_jax import __version__
from srl_jax.reporting import audit, curves, evaluations, findings, groups, rollouts
from srl_jax.reporting.privacy import public_settings, public_text
from srl_jax.reporting.reading import RunFiles


def contents(runs: Sequence[RunFiles]) -> dict[str, Any]:
  """Returns the data of a page of `runs`, in which no text is private (reporting.privacy)."""
  count, size = groups.COUNT // len(runs), groups.BYTES // len(runs)
  limit = rollouts.LIMIT // len(runs)
  shown, about, audits = [], [], []
  for place, run in enumerate(runs):
    read = rollouts.read_groups(run, limit)
    found = groups.shown_groups(run, read.groups, count, size)
    shown += [{"run": place} | group for group in found]
    audits.append(audit.audit(run, read.groups))
    about.append(_about(run, read, len(found), audits[-1]))
  return {
    "version": __version__,
    "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S"),
    "runs": about,
    "settings": settings_table(runs),
    "curves": curves.curves(runs),
    "groups": shown,
    "audits": audits,
    "evaluation": evaluations.read_evaluations(runs),
  }


def _about(
  run: RunFiles, read: rollouts.Groups, shown: int, audited: Mapping[str, Any] | None
) -> dict[str, Any]:
  """Returns the head of a run: what it is, how far it is, what is wrong with it."""
  summary = run.summary or {}
  figures = {}
  for name in ("before", "after"):
    if isinstance(summary.get(name), dict):
      figures[name] = {key: value for key, value in summary[name].items() if key != "passes"}
  steps = run.config.get("train.steps")
  return {
    "name": public_text(run.name),
    "method": public_text(str(run.config.get("method", "unknown"))),
    "model": public_text(str(run.config.get("model", "unknown"))),
    "step": int(run.metrics[-1]["step"]) if run.metrics else 0,
    "steps": steps if isinstance(steps, int) and steps > 0 else None,
    "finished": run.summary is not None,
    "best": curves.best_step(run),
    "summary": figures,
    "faults": [public_text(fault) for fault in run.faults + read.faults],
    "findings": findings.findings(run, audited),
    "rollouts": {
      "groups": len(read.groups),
      "shown": shown,
      "steps": read.steps,
      "steps_read": read.steps_read,
    },
  }


def settings_table(runs: Sequence[RunFiles]) -> dict[str, Any]:
  """Returns {"rows": [[key, value of each run ...]], "of_defaults"}: the settings that differ.

  Of a single run those that differ from the package's defaults, beside these.
  """
  columns = [public_settings(run.config) for run in runs]
  if len(runs) == 1:
    columns = [_defaults(), *columns]
  rows = []
  for key in sorted(set().union(*columns)):
    if key in ("version", "model_folder") or key.startswith("log."):
      continue  # they change nothing in a run
    values = [column.get(key) for column in columns]
    if any(value != values[0] for value in values[1:]):
      rows.append([key, *(_shown(value) for value in values)])
  return {"rows": rows, "of_defaults": len(runs) == 1}


def _defaults() -> dict[str, Any]:
  from srl_jax import config, folders  # ml_collections takes a while to import

  return public_settings(folders.flatten(config.defaults()))


def _shown(value: Any) -> str:
  """Returns a setting as text of a table's cell."""
  return groups.cut("" if value is None else str(value), 120)
