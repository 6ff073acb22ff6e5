"""Runs the commands of a table: trainings and evaluations, in order, some side by side.

A finished training or evaluation ends at once when its command is given again, and an unfinished
one continues. An interrupted table is therefore continued by the same command.
"""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from srl_jax import command_line
from srl_jax.config import check
from srl_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"


class Stage(NamedTuple):
  """A command of a table.

  Fields: name, of the stage and of its log; arguments, of `python -m`; result, the file that it
  writes last; after, the name of the stage that must have finished before, or "".
  """

  name: str
  arguments: tuple[str, ...]
  result: pathlib.Path
  after: str = ""

  @property
  def command(self) -> list[str]:
    return [sys.executable, "-m", *self.arguments]


def training(
  name: str, config: str, overrides: Sequence[str], root: pathlib.Path, after: str = ""
) -> Stage:
  """The stage that trains in `root`/`name`, from the best checkpoint of the stage `after`.

  Raises UserError for a config that srl_jax.train would refuse.
  """
  if after:
    overrides = [*overrides, f"--config.init_from={root / after}"]
  config_of(config, overrides)
  arguments = ("srl_jax.train", f"--config={config}", f"--workdir={root / name}", *overrides)
  return Stage(name, arguments, root / name / "summary.json", after)


def evaluation(
  name: str,
  model: str,
  output: pathlib.Path,
  benchmarks: Sequence[str],
  more: Sequence[str],
  after: str = "",
) -> Stage:
  """The stage that evaluates a model (a folder, a hub name or a run's workdir) in `output`."""
  arguments = ("srl_jax.evaluate", f"--model={model}", f"--output={output}")
  arguments += (f"--benchmarks={','.join(benchmarks)}", *more)
  return Stage(name, arguments, output / "table.json", after)


def config_of(file: str, overrides: Sequence[str] = ()):
  """The config that srl_jax.train would run; UserError if it would refuse it."""
  # Flags are parsed into a separate FlagValues: the process's flags are those of the table.
  alone = flags.FlagValues()
  argv = ["", f"--config={file}", *overrides]
  config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=argv)
  try:
    alone(argv)
  except (flags.Error, AttributeError, KeyError) as error:  # as ml_collections raises them
    raise UserError(f"{file}: {command_line.without_traceback(str(error))}") from error
  check(alone.config)
  return alone.config


def run(stages: Sequence[Stage], logs: pathlib.Path, jobs: int = 1) -> None:
  """Runs the stages in order, as far as `after` and `jobs` allow.

  One at a time they print to the terminal; side by side each has a log, NAME.log in the folder
  `logs`, and its share of the cores. SIGINT and SIGTERM are passed on, so that runs save, and end
  the process with code 130. Raises UserError, once the others have stopped, when a stage fails.
  """
  waiting, finished = list(stages), {""}  # a stage after "" depends on none
  running: dict[int, tuple[Stage, subprocess.Popen, float]] = {}  # by share of the cores
  signals = []  # received; handled in the loop below
  before = {
    number: signal.signal(number, lambda number, _: signals.append(number))
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    while (waiting or running) and not signals:
      for stage in [stage for stage in waiting if stage.after in finished]:
        share = next((share for share in range(jobs) if share not in running), None)
        if share is not None:
          running[share] = (stage, _start(stage, logs, share, jobs), time.monotonic())
          waiting.remove(stage)
      time.sleep(0.1)
      for share, (stage, process, begun) in list(running.items()):
        if process.poll() is not None:
          del running[share]
          _check_finished(stage, process.returncode, logs if jobs > 1 else None)
          finished.add(stage.name)
          print(f"{time.strftime('%H:%M:%S')}  {stage.name}: {time.monotonic() - begun:.0f} s")
  finally:
    for _, process, _ in running.values():
      process.send_signal(signal.SIGINT)  # both commands save what they have
    for _, process, _ in running.values():
      process.wait()
    for number, handler in before.items():
      signal.signal(number, handler)
  if signals:
    print("\nstopped; the same command continues", flush=True)
    raise SystemExit(130)


def _start(stage: Stage, logs: pathlib.Path, share: int, jobs: int) -> subprocess.Popen:
  print(f"{time.strftime('%H:%M:%S')}  {stage.name} ...", flush=True)
  # In a separate process group a run gets Ctrl-C once, from us and not from the terminal too.
  alone = dict(process_group=0, stdin=subprocess.DEVNULL)
  if jobs == 1:
    return subprocess.Popen(stage.command, **alone)
  logs.mkdir(parents=True, exist_ok=True)
  with (logs / f"{stage.name}.log").open("a", encoding="utf-8") as log:
    process = subprocess.Popen(stage.command, stdout=log, stderr=subprocess.STDOUT, **alone)
  if hasattr(os, "sched_setaffinity"):  # or the threads of all would compete for the cores
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(process.pid, cores[share::jobs] or cores)
  return process


def _check_finished(stage: Stage, code: int, logs: pathlib.Path | None) -> None:
  """Raises UserError if a stage that has ended has not done its work."""
  if code == 0 and stage.result.exists():  # a run that is stopped saves and ends with code 0
    return
  log = f"; its output is in {logs / stage.name}.log" if logs else ""
  how = f"ended with code {code}" if code else "was stopped before its end"
  raise UserError(f"{stage.name}: {how}{log}. It was: {shlex.join(stage.command)}")
