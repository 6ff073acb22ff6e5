"""Runs the experiment that a config selects: python -m srl_jax.train --config=FILE[:args]."""

import contextlib
import os
import pathlib
import sys

from absl import flags, logging
from ml_collections import config_flags

from srl_jax import command_line, folders
from srl_jax.errors import EngineError, Stopped, UserError

config_flags.DEFINE_config_file("config", None, "config file, with arguments after a colon")
flags.DEFINE_string("workdir", None, "folder of the run (default: runs/<config name>)")
FLAGS = flags.FLAGS


def main(argv) -> None:
  del argv
  if FLAGS.config is None:
    raise UserError("--config: name a config file, for example configs/quickstart.py")
  logging.set_verbosity(logging.WARNING)  # orbax tells every rename
  import jax  # after the flags: a mistake in them must not wait for it

  from srl_jax import config as common
  from srl_jax import hosts
  from srl_jax.learner import rl, sft, start
  from srl_jax.policy.sharding import make_mesh

  config = FLAGS.config
  common.check(config)
  hosts.initialize()
  workdir = pathlib.Path(FLAGS.workdir or pathlib.Path("runs") / config_name())
  run = sft.train if config.method == "sft" else rl.train
  try:
    with contextlib.ExitStack() as ends:
      if hosts.is_writer():
        ends.enter_context(folders.locked(workdir))
      hosts.barrier()  # whose workdir it is, and what is in it, nobody asks before
      start.claim_workdir(workdir, config)
      if summary := hosts.broadcast(start.finished(workdir, config)):
        if hosts.is_writer():
          print(f"{workdir} is finished; its table:\n{table(summary, workdir)}", flush=True)
        return
      if hosts.is_writer():  # it says that a run is finished, and this one goes on
        (workdir / "summary.json").unlink(missing_ok=True)
      ends.enter_context(jax.set_mesh(make_mesh(common.mesh_spec(config))))
      summary = run(config, workdir)
  except Stopped as stopped:
    if hosts.is_writer():
      again = " ".join(["python -m srl_jax.train", *sys.argv[1:]])
      print(f"\nstopped by {stopped}; saved. Continue with the same command: {again}", flush=True)
    return
  except EngineError as error:
    print(f"error: {error}. What was trained is saved; the same command continues", file=sys.stderr)
    raise SystemExit(os.EX_TEMPFAIL) from error
  except jax.errors.JaxRuntimeError as error:
    hosts.abort(error)
    raise
  if hosts.is_writer():
    folders.write_json(workdir / "summary.json", summary)
    print(table(summary, workdir), flush=True)
  hosts.barrier()  # a process that ends waits for the others, but not for long


def config_name() -> str:
  """The config file's name without its suffix and arguments."""
  return pathlib.Path(config_flags.get_config_filename(FLAGS["config"]).split(":")[0]).stem


def table(summary: dict, workdir: pathlib.Path) -> str:
  """The final table as text."""
  lines = [f"\n{summary['method']}, {summary['steps']} steps, {summary['seconds']:.0f} s"]
  if "after" in summary:
    names = list(summary["after"])
    lines += ["  ".join([" " * 20, *(f"{name.replace('_', ' '):>10}" for name in names)])]
    for row in ("before", "after"):
      cells = (f"{summary[row][name]:>10.1%}" for name in names)
      lines.append("  ".join([f"{row:<20}", *cells]))
  elif summary["validation"]:
    step, score = max(summary["validation"].items(), key=lambda item: item[1])
    lines.append(f"best on validation: step {step}, {score:.4f}")
  lines.append(f"everything is in {workdir}: summary.json, metrics.jsonl, rollouts/, checkpoints/")
  return "\n".join(lines)


if __name__ == "__main__":
  command_line.run(main)
