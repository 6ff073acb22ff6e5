"""Exports a run's checkpoint as a Hugging Face folder for transformers and vLLM.

  python -m srl_jax.export --workdir=runs/quickstart            writes runs/quickstart/export
  python -m srl_jax.export --workdir=runs/quickstart --output=exported
  python -m srl_jax.export --workdir=runs/lora                  a run with lora.rank: its adapters
  python -m srl_jax.export --workdir=runs/lora --merge          its whole model, runs/lora/merged

The checkpoint is the one with the best validation score, or the last one if nothing was validated.
Tokenizer and generation settings are those of the model that the run started from, with all stop
tokens of the run: a base model's own settings do not contain the end of a chat turn. SHA256SUMS has
the checksums of the files, which evaluate and init_from verify. The command runs on the CPU, also
while a run uses the accelerator.

Of a run with LoRA the adapters are written by default, in peft's format, which is small and names
the base model: peft and vLLM load both, unmerged, as in training. --merge adds the adapters to the
weights, with one rounding, and writes a whole model.
"""

import pathlib
from collections.abc import Callable

from absl import logging

from srl_jax import command_line, folders, progress
from srl_jax.errors import UserError

flags = command_line.own_flags()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Folder to write: new, or empty (default: WORKDIR/export, or WORKDIR/merged)."
)
_MERGE = flags.DEFINE_bool("merge", False, "Of a run with LoRA: the whole model, not its adapters.")
_BASE = flags.DEFINE_string(
  "base", None, "Folder of the model that the run started from, if it was moved."
)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to take (default: the best).")
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16"],
  "Type of the weights (default: the run's computation type).",
)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.FATAL)  # orbax logs every file, and errors before it raises them
  import jax  # after the flags: errors in them must not wait for this import

  jax.config.update("jax_platforms", "cpu")  # before JAX looks for devices
  folder = "merged" if _MERGE.value else "export"
  output = _OUTPUT.value or pathlib.Path(_WORKDIR.value) / folder
  step = export(_WORKDIR.value, output, _STEP.value, _DTYPE.value, _MERGE.value, _BASE.value)
  print(f"wrote {output}: step {step} of {_WORKDIR.value}")


def export(
  workdir,
  output,
  step: int | None = None,
  dtype: str | None = None,
  merge: bool = False,
  base: str | None = None,
) -> int:
  """Writes a checkpoint of the run in `workdir` to `output` and returns its step.

  Args:
    workdir: folder of a run, with checkpoints/.
    output: new or empty folder.
    step: which checkpoint; by default the best on validation, else the last.
    dtype: of whole weights, float32 or bfloat16; by default the type in which the run computed.
      Adapters are float32, as they were trained.
    merge: write a whole model although the run trained adapters.
    base: folder of the model that the run started from, if it was moved.

  Raises:
    UserError: there is no such checkpoint, the run's model, its base or its tokenizer cannot be
      read, or `output` is not empty.
  """
  from srl_jax.data.tokenizer import load_tokenizer, stop_ids
  from srl_jax.learner import start
  from srl_jax.learner.checkpoint import Checkpoints, model_of, read_config
  from srl_jax.policy import hf_files, peft_files, weights

  workdir = pathlib.Path(workdir)
  if not Checkpoints.present(workdir):
    raise UserError(
      f"{workdir}: no run with a checkpoint (checkpoints/); give the --workdir of a run that has"
      " saved"
    )
  run = read_config(workdir)
  run["model"] = model_of(run, base)
  weights.check_new(output)
  source = hf_files.resolve_model(run["model"])
  ends = stop_ids(load_tokenizer(source), source)
  found = start.described(str(workdir), base)
  if merge and not found:
    raise UserError(f"--merge: {workdir} trained all weights, so there is nothing to merge")
  step, trained = _restore(workdir, run, step, found)
  if found and not merge:
    if dtype:
      raise UserError(f"--dtype={dtype}: adapters are written in float32; with --merge it counts")
    if base:  # the folder will name it as the weights that the adapters belong to
      start.check_same_base("--base", found[1], start.identify(base, hf_files.resolve_model(base)))
    peft_files.save(trained, output, _absolute(found[1]).json(), checksums=True)
    return step
  dtype = dtype or run["dtype"]
  if found:
    saved = start.Saved(trained, found[1])
    trained = start.merge(saved, run["dtype"], dtype)
  how = dict(dtype=dtype, source=source, stop_ids=ends, checksums=True)
  weights.save_hf(trained.config, trained, output, **how, progress=_show_tensors())
  return step


def _absolute(base):
  """The Base with the absolute path of its folder: adapters are read from any folder."""
  return base._replace(model=folders.absolute(base.model) or base.model)


def _restore(workdir: pathlib.Path, run: dict, step: int | None, found):
  """(step, what the run had trained at it) on the CPU; found: of start.described."""
  import jax

  from srl_jax.learner.checkpoint import Checkpoints
  from srl_jax.policy import hf_files, lora, model

  config = hf_files.load_config(hf_files.resolve_model(run["model"]), run["dtype"])
  shapes = lora.abstract(found[0], config) if found else model.abstract(config)
  device = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
  checkpoints = Checkpoints(workdir)
  step = checkpoints.best_step() if step is None else step
  if step not in checkpoints.steps():
    kept = ", ".join(map(str, checkpoints.steps()))
    raise UserError(f"{workdir}: no checkpoint of step {step}; it has {kept}")
  shapes = jax.tree.map(lambda leaf: leaf.update(sharding=device), shapes)
  trained, _, _ = checkpoints.restore(step, shapes)
  checkpoints.close()
  return step, trained


def _show_tensors() -> Callable[[int, int], None]:
  """Returns a function that shows how many tensors are written."""
  line = progress.ProgressLine(None, name="tensor", unit="tensors")

  def show(done: int, total: int) -> None:
    line.total = total
    line.show(done)

  return show


if __name__ == "__main__":
  command_line.run(main, flags.values)
