"""Runs the commands of a table: in order, some at a time, and none whose result is there already.

A table is a list of stages, trainings and evaluations, that find out from what they have written
whether they are finished. So a table that was interrupted goes on with the same command.
"""

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from srl_jax import command_line
from srl_jax.errors import UserError
from srl_jax.evals import math_benchmarks

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"


@dataclasses.dataclass(frozen=True)
class Stage:
  """A command of a table.

  Fields:
    name: of the stage, and of its log where stages run side by side.
    arguments: of `python -m`.
    finished: tells whether there is nothing left to do.
    needs: names of the stages that have to be finished before.
    record: file that takes `arguments` when the stage starts, or None.
  """

  name: str
  arguments: tuple[str, ...]
  finished: Callable[[], bool]
  needs: tuple[str, ...] = ()
  record: pathlib.Path | None = None

  @property
  def command(self) -> list[str]:
    return [sys.executable, "-m", *self.arguments]


def training(
  name: str, config: str, overrides: Sequence[str], root: pathlib.Path, after: str = ""
) -> Stage:
  """The stage that trains in the folder `root`/`name`.

  Args:
    config: file, with its arguments after a colon.
    overrides: flags --config.a.b=value.
    after: name of the training stage whose best checkpoint it starts from.

  Raises UserError if the folder holds a finished run of another config.
  """
  if after:
    overrides = [*overrides, f"--config.init_from={root / after}"]
  workdir = root / name
  wanted = config_of(config, overrides)

  def finished() -> bool:
    if not isinstance(_read(workdir / "summary.json"), dict):
      return False
    from srl_jax.learner import checkpoint  # it imports jax

    made = checkpoint.read_config(workdir)["train"]
    # A run is also the same when it is to be longer; srl_jax.train then goes on with it.
    return (made["steps"], made["epochs"]) == (wanted.train.steps, wanted.train.epochs)

  if (workdir / "summary.json").exists():  # srl_jax.train checks those that it goes on with
    from srl_jax.learner import workdir as workdirs

    workdirs.check_same_run(workdir, wanted)
  arguments = ("srl_jax.train", f"--config={config}", f"--workdir={workdir}", *overrides)
  return Stage(name, arguments, finished, (after,) if after else ())


def evaluation(
  name: str,
  model: str,
  output: pathlib.Path,
  benchmarks: Sequence[str],
  more: Sequence[str],
  needs: tuple[str, ...] = (),
) -> Stage:
  """The stage that evaluates a model: a folder, a hub name or a run's workdir.

  Args:
    output: its folder.
    benchmarks: what evaluate takes.
    more: further flags.
    needs: the stage that trains the model.
  """
  names = {math_benchmarks.benchmark_name(spec) for spec in benchmarks}

  arguments = ("srl_jax.evaluate", f"--model={model}", f"--output={output}")
  arguments += (f"--benchmarks={','.join(benchmarks)}", *more)
  table, record = output / "table.json", output / "command.json"

  def finished() -> bool:
    if record.exists() and _read(record) != list(arguments):
      return False  # with another --limit, say: evaluate adds what is missing, or refuses
    found = _read(table)  # it is written last
    return isinstance(found, dict) and names <= found.get("benchmarks", {}).keys()

  return Stage(name, arguments, finished, needs, record)


def _read(path: pathlib.Path):
  """The JSON in a file; None if it is missing or damaged, as after a power failure."""
  try:
    return json.loads(path.read_text("utf-8"))
  except (OSError, ValueError):
    return None


def config_of(file: str, overrides: Sequence[str] = ()):
  """The config that srl_jax.train would run; UserError if it is not sound."""
  from srl_jax.config import check

  alone = flags.FlagValues()
  argv = ["", f"--config={file}", *overrides]
  config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=argv)
  try:
    alone(argv)
  except (flags.Error, AttributeError, KeyError) as error:  # as ml_collections raises them
    raise UserError(f"{file}: {command_line.without_traceback(str(error))}") from error
  check(alone.config)
  return alone.config


def show(stages: Sequence[Stage]) -> None:
  """Prints the commands that `run` would start, one a line, and what is finished as a comment."""
  for stage in stages:
    print(f"# finished: {stage.name}" if stage.finished() else shlex.join(stage.command))


def run(stages: Sequence[Stage], logs: pathlib.Path, jobs: int = 1) -> None:
  """Runs what is not finished, in order as far as `needs` and `jobs` allow.

  One at a time they print to the terminal; side by side each has a log and its share of the cores.
  SIGINT and SIGTERM are passed on, so that runs save, and end the process with code 130.

  Args:
    stages: in an order in which they could run.
    logs: folder of the logs NAME.log.
    jobs: most stages at a time.

  Raises UserError, once the others have stopped, when a stage fails.
  """
  waiting = [stage for stage in stages if not stage.finished()]
  running: dict[int, tuple[Stage, subprocess.Popen, float]] = {}  # by lane
  asked = []  # signals that came
  before = {
    number: signal.signal(number, lambda number, _: asked.append(number))
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    while (waiting or running) and not asked:
      for stage in [stage for stage in waiting if _ready(stage, stages)]:
        lane = next((lane for lane in range(jobs) if lane not in running), None)
        if lane is not None:
          running[lane] = (stage, _start(stage, logs, lane, jobs), time.monotonic())
          waiting.remove(stage)
      time.sleep(0.1)
      for lane, (stage, process, begun) in list(running.items()):
        if process.poll() is not None:
          del running[lane]
          _judge(stage, process.returncode, time.monotonic() - begun, logs, jobs)
  finally:
    for _, process, _ in running.values():
      process.send_signal(signal.SIGINT)  # both commands save what they have
    for _, process, _ in running.values():
      process.wait()
    for number, handler in before.items():
      signal.signal(number, handler)
  if asked:
    print("\nstopped; the same command goes on where it stopped", flush=True)
    raise SystemExit(130)


def _ready(stage: Stage, stages: Sequence[Stage]) -> bool:
  return all(other.finished() for other in stages if other.name in stage.needs)


def _start(stage: Stage, logs: pathlib.Path, lane: int, jobs: int) -> subprocess.Popen:
  print(f"{time.strftime('%H:%M:%S')}  {stage.name} ...", flush=True)
  if stage.record:
    stage.record.parent.mkdir(parents=True, exist_ok=True)
    stage.record.write_text(json.dumps(stage.arguments) + "\n", encoding="utf-8")
  # A process group of its own: Ctrl-C at the terminal reaches us alone, and a run once.
  alone = dict(process_group=0, stdin=subprocess.DEVNULL)
  if jobs == 1:
    return subprocess.Popen(stage.command, **alone)
  logs.mkdir(parents=True, exist_ok=True)
  with (logs / f"{stage.name}.log").open("a", encoding="utf-8") as log:
    process = subprocess.Popen(stage.command, stdout=log, stderr=subprocess.STDOUT, **alone)
  if hasattr(os, "sched_setaffinity"):  # else their threads would fight for the cores
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(process.pid, cores[lane::jobs] or cores)
  return process


def _judge(stage: Stage, code: int, seconds: float, logs: pathlib.Path, jobs: int) -> None:
  """Says that a stage has ended; raises UserError if it has not done its work."""
  if code == 0 and stage.finished():
    print(f"{time.strftime('%H:%M:%S')}  {stage.name}: {seconds:.0f} s", flush=True)
    return
  said = f"; its output is in {logs / stage.name}.log" if jobs > 1 else ""
  how = f"ended with code {code}" if code else "was stopped before its end"
  raise UserError(f"{stage.name}: {how}{said}. It was: {shlex.join(stage.command)}")


def split_flags(argv: list[str], *prefixes: str) -> tuple[list[str], ...]:
  """The command line cut up: (what is left, flags of the first prefix, of the second, ...).

  A prefix is what flags to be passed on begin with, such as "--config.".
  """
  own = [argument for argument in argv if not argument.startswith(prefixes)]
  return own, *([a for a in argv if a.startswith(prefix)] for prefix in prefixes)
