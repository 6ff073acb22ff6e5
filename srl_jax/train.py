"""Trains the experiment of a config: python -m srl_jax.train --config=FILE[:args]."""

import contextlib
import os
import pathlib
import sys

from absl import flags, logging
from ml_collections import config_flags

from srl_jax import command_line, folders
from srl_jax.errors import EngineError, Stopped, UserError, out_of_memory

config_flags.DEFINE_config_file("config", None, "config file, with arguments after a colon")
flags.DEFINE_string("workdir", None, "folder of the run (default: runs/<config name>)")
FLAGS = flags.FLAGS


def main(argv) -> None:
  del argv
  if FLAGS.config is None:
    raise UserError("--config: name a config file, for example configs/quickstart.py")
  if FLAGS.workdir and "://" in FLAGS.workdir:  # a pathlib.Path would make a local folder of it
    raise UserError(
      f"--workdir={FLAGS.workdir} is a URL: mount the object store (docs/clusters.md) and name a"
      " folder there"
    )
  logging.set_verbosity(logging.FATAL)  # orbax logs every rename, and errors before it raises them
  import jax  # after the flags: errors in them must not wait for this import

  from srl_jax import config as configs
  from srl_jax import hosts
  from srl_jax.learner import programs
  from srl_jax.learner import workdir as workdirs
  from srl_jax.learner.page_process import Page
  from srl_jax.policy.sharding import make_mesh

  config = FLAGS.config
  configs.check(config)
  hosts.initialize()  # before anything uses a device
  hosts.devices()  # raises the error about a missing platform before anything else uses a device
  cache = programs.use_cache()
  if cache:
    say(cache)
  workdir = pathlib.Path(FLAGS.workdir or pathlib.Path("runs") / config_name())
  try:
    with contextlib.ExitStack() as stack:
      if hosts.is_writer():
        stack.enter_context(folders.locked(workdir))
      hosts.barrier()  # the others may read the workdir only after process 0 has its lock
      workdirs.claim(workdir, config)
      summary = hosts.broadcast(workdirs.finished(workdir, config))
      if summary:
        say(f"{workdir} is finished; its table:\n{table(summary, workdir)}")
        return
      if hosts.is_writer():  # summary.json marks a finished run, but this one continues
        (workdir / "summary.json").unlink(missing_ok=True)
      with jax.set_mesh(make_mesh(configs.mesh_spec(config))):
        summary = run_training(config, workdir)
      if hosts.is_writer():
        folders.write_json(workdir / "summary.json", summary)
        page = Page(workdir, config.log.report)
        page.write_last()
        page.close()
  except Stopped as stopped:
    again = " ".join(["python -m srl_jax.train", *sys.argv[1:]])
    say(f"\nstopped by {stopped}; saved. Continue with the same command: {again}")
    return
  except EngineError as error:
    print(f"error: {error}. What was trained is saved; the same command continues", file=sys.stderr)
    raise SystemExit(os.EX_TEMPFAIL) from error  # launch/trainer.sh turns it into 69
  except jax.errors.JaxRuntimeError as error:
    refusal = out_of_memory(error, memory_advice(config))
    # The other processes would otherwise wait in a collective for this one.
    hosts.abort(refusal or error)
    if refusal:
      raise refusal from error
    raise
  say(table(summary, workdir))
  hosts.barrier()  # at shutdown the others would take process 0 for dead if it still writes


def run_training(config, workdir: pathlib.Path) -> dict:
  """Trains as the config specifies, from the workdir's last checkpoint, and returns the summary."""
  from srl_jax.learner import rl, setup, sft, summary

  with setup.open_run(config, workdir) as opened:
    # Supervised fine-tuning samples only to measure the benchmark.
    if config.method != "sft" or config.eval.benchmark:
      opened.engine.load_weights(opened.state.model, opened.state.step)
    summary.measure_untrained(opened)
    if config.method == "sft":
      sft.train(opened)
    else:
      rl.train(opened, setup.load_reference(opened))
    return summary.summarise(opened)


def memory_advice(config) -> str:
  """Returns the settings to lower when a device runs out of memory, as the end of a sentence."""
  from srl_jax.learner.update import loss_of

  loss = loss_of(config)
  batch, rollout = config.batch, config.rollout
  return (
    f"batch.tokens_per_device ({batch.tokens_per_device}), batch.logprob_chunk"
    f" ({loss.chunk}), rollout.width ({rollout.width}) or rollout.max_tokens"
    f" ({rollout.max_tokens}), set batch.remat=full (it is {loss.remat}), or use more devices"
    f" (mesh={config.mesh}); srl_jax.plan computes what fits. The last checkpoint is untouched"
  )


def say(message: str) -> None:
  """Prints a message, once for all processes."""
  from srl_jax import hosts

  if hosts.is_writer():
    print(message, flush=True)


def config_name() -> str:
  """Returns the config file's name without suffix and arguments."""
  return pathlib.Path(config_flags.get_config_filename(FLAGS["config"]).split(":")[0]).stem


def table(summary: dict, workdir: pathlib.Path) -> str:
  """Returns the final table as text."""
  lines = [f"\n{summary['method']}, {summary['steps']} steps, {summary['seconds']:.0f} s"]
  if "after" in summary:
    names = list(summary["after"])
    lines += ["  ".join([" " * 20, *(f"{name.replace('_', ' '):>10}" for name in names)])]
    for row in ("before", "after"):
      cells = (f"{summary[row][name]:>10.1%}" for name in names)
      lines.append("  ".join([f"{row:<20}", *cells]))
  elif summary["validation"]:
    step = summary["best_step"]
    score = summary["validation"].get(str(step))
    if score is not None:
      lines.append(f"best on validation: step {step}, {score:.4f}")
  page = "report.html, " if (workdir / "report.html").exists() else ""
  lines.append(
    f"everything is in {workdir}: {page}summary.json, metrics.jsonl, rollouts/, checkpoints/"
  )
  return "\n".join(lines)


if __name__ == "__main__":
  command_line.run(main)
