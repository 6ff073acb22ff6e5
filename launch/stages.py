"""The commands of a table: trainings and evaluations, as {the file written last: command}.

A finished training or evaluation ends at once when its command is given again, and an unfinished
one continues. An interrupted table is therefore continued by the same command.
"""

import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from srl_jax import command_line
from srl_jax.config import check
from srl_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
Commands = dict[pathlib.Path, list[str]]


def chosen(names: Sequence[str], known: Sequence[str]) -> list[str]:
  """The rows of a table that have these names, in its order. Raises UserError for other names."""
  if unknown := set(names) - set(known):
    raise UserError(f"no row {', '.join(sorted(unknown))}; there are {', '.join(known)}")
  return [name for name in known if name in names]


def train(config: str, workdir: pathlib.Path, overrides: Sequence[str] = (), start="") -> Commands:
  """The training of `config` in `workdir`, from the best checkpoint of the workdir `start`.

  Raises UserError for a config that srl_jax.train would refuse.
  """
  if start:
    overrides = [*overrides, f"--config.init_from={start}"]
  config_of(config, overrides)
  command = ["srl_jax.train", f"--config={config}", f"--workdir={workdir}", *overrides]
  return {workdir / "summary.json": [sys.executable, "-m", *command]}


def evaluate(model, output: pathlib.Path, benchmarks: Sequence[str], more: list[str]) -> Commands:
  """The evaluation of a model (a folder, a hub name or a run's workdir) in `output`."""
  command = ["srl_jax.evaluate", f"--model={model}", f"--output={output}"]
  command += [f"--benchmarks={','.join(benchmarks)}", *more]
  return {output / "table.json": [sys.executable, "-m", *command]}


def config_of(file: str, overrides: Sequence[str] = ()):
  """The config that srl_jax.train would run; UserError if it would refuse it."""
  config = command_line.load_config(file, overrides)
  check(config)
  return config


def run(commands: Commands, dry_run: bool) -> None:
  """Runs the commands in order; in a dry run prints them, one a line, and ends the process.

  SIGINT and SIGTERM interrupt the command, which saves, and end the process with code 130. Raises
  UserError when a command fails.
  """
  if dry_run:
    print("\n".join(map(shlex.join, commands.values())))
    sys.exit()
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  for result, command in commands.items():
    print(f"{time.strftime('%H:%M:%S')}  {result.parent} ...", flush=True)
    # In a separate process group it gets Ctrl-C once, from us and not from the terminal too.
    process = subprocess.Popen(command, process_group=0, stdin=subprocess.DEVNULL)
    try:
      process.wait()
    except KeyboardInterrupt:
      process.send_signal(signal.SIGINT)
      process.wait()
      print("\nstopped; the same command continues", flush=True)
      sys.exit(130)
    # A training that is stopped saves and ends with code 0, without its result.
    if process.returncode or not result.exists():
      raise UserError(
        f"{result.parent}: the command ended with code {process.returncode} before its work was"
        f" done. It was: {shlex.join(command)}"
      )
