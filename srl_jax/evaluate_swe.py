"""How many issues of SWE-bench Verified a model's patches may resolve (paper, 5.3 and Table 4).

  launch/swe_repositories.sh DIR
  python -m srl_jax.evaluate_swe --model=runs/srl_swe --settings=oracle,end_to_end \\
      --repositories=DIR --output=evals/swe/srl
  python -m srl_jax.evals.swe.judge --predictions=evals/swe/srl/oracle/predictions.jsonl \\
      --data=verified --output=evals/swe/srl/oracle --by=docker

Two settings. oracle: the policy is shown the issue and the files that the fix changes, and writes
SEARCH/REPLACE edits. end_to_end, as Agentless Mini: it first names files from the tree of names,
then is shown these. One greedy response each; with --samples=k the patch that most of k samples
agree on, by the normal form of the code.

The model is a Hugging Face folder or name, or a run's workdir: its best checkpoint. Nothing of the
repositories is run here: that is the judge's part. docs/swe.md has the protocol and what the paper
leaves open.

OUTPUT/SETTING/predictions.jsonl   SWE-bench's own form, a line for every instance
               repairs.jsonl       what was shown, every edit and what became of it
               prompts.jsonl, locations.jsonl, *.rollouts.jsonl    see srl_jax.evals.swe.solve
OUTPUT/table.{txt,md,json}         the figures, those of judged.jsonl where there is one
OUTPUT/settings.json               what was measured, and how

With --engine=vllm servers sample (launch/vllm_server.sh); they get the weights from here. The same
command continues where it stopped; another model or other settings are refused.
"""

import pathlib
import zlib
from typing import Any

from absl import logging

from srl_jax import command_line, measuring, progress
from srl_jax.errors import UserError
from srl_jax.evals.swe import instances, prompting, repositories, solve, table

flags = command_line.own_flags()
_MODEL = flags.DEFINE_string("model", None, "Model folder, workdir or hub name.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to or to continue.", required=True)
_REPOSITORIES = flags.DEFINE_string(
  "repositories", None, "Folder of bare clones (launch/swe_repositories.sh).", required=True
)
_SETTINGS = flags.DEFINE_list("settings", list(solve.SETTINGS), "oracle, end_to_end.")
_DATA = flags.DEFINE_string("data", instances.VERIFIED, "File of rows, or name on the hub.")
_LIMIT = flags.DEFINE_integer("limit", None, "The first rows only.", 1)
_SAMPLES = flags.DEFINE_integer("samples", 1, "Repairs of an issue: 1 greedy, or k and a vote.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of several samples.")
_STYLE = flags.DEFINE_enum(
  "style", None, ["plain", "think"], "Think before the answer or not (default: as the run, plain)."
)
_MAX_PROMPT_TOKENS = flags.DEFINE_integer("max_prompt_tokens", 28672, "Of a prompt.", 1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 4096, "Of a response.", 1)
_LOCALIZE_PROMPT = flags.DEFINE_string(
  "localize_prompt", None, "File that replaces our prompt; it has {issue} and {tree}."
)
_REPAIR_PROMPT = flags.DEFINE_string(
  "repair_prompt", None, "File that replaces our prompt; it has {issue} and {files}."
)
_ENGINE = flags.DEFINE_enum("engine", "builtin", ["builtin", "vllm"], "Who samples.")
_SERVERS = flags.DEFINE_list("servers", None, "vLLM's base URLs (launch/vllm_server.sh).")
_WEIGHTS_ROOT = flags.DEFINE_string(
  "weights_root", "/dev/shm", "Folder through which the weights go to the servers."
)
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16"], "Of computation (default: the run's or the files')."
)
_MESH = flags.DEFINE_string("mesh", None, "A preset or sizes (default: fsdp=all devices).")
_WIDTH = flags.DEFINE_integer("width", 16, "Most responses that are decoded side by side.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.", 0)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)  # orbax logs every rename
  _check_flags()
  found = instances.load(_DATA.value, _LIMIT.value)
  _check_rows(found)
  output = pathlib.Path(_OUTPUT.value)
  import jax  # after the flags and files: a mistake in them must not wait for it

  run = measuring.read_run(pathlib.Path(_MODEL.value))
  words, settings = _settings(run)
  measuring.check_same(output, settings)
  with jax.set_mesh(measuring.mesh_of(_MESH.value)):
    width = min(_WIDTH.value, len(found) * _SAMPLES.value)
    line = progress.ProgressLine(None, name="response", unit="responses")
    solver, settings["weights"] = _load(run, words, settings, width, line)
    advice = f"--width ({_WIDTH.value}) or --max_prompt_tokens"
    with measuring.sampling(solver.engine, output, advice), line:
      measuring.claim(output, settings)
      for setting in _SETTINGS.value:
        solve.solve(solver, setting, found, output / setting)
  print(table.write(output))


def _check_flags() -> None:
  measuring.check_sampling(_ENGINE.value, _SERVERS.value, _TEMPERATURE.value)
  unknown = [name for name in _SETTINGS.value if name not in solve.SETTINGS]
  if unknown or not _SETTINGS.value:
    raise UserError(f"--settings={','.join(_SETTINGS.value)}: use {', '.join(solve.SETTINGS)}")


def _check_rows(found: list[instances.Instance]) -> None:
  """Raises UserError, before a model is loaded, for a row that cannot be shown."""
  root = pathlib.Path(_REPOSITORIES.value)
  for instance in found:
    repositories.open_repository(root, instance.repo, instance.base_commit)
    if solve.ORACLE in _SETTINGS.value and not instance.gold_files():
      raise UserError(
        f"--data={_DATA.value}: {instance.id} has no patch, so the oracle setting has no files"
        " to show; use --settings=end_to_end"
      )


def _settings(run: dict | None) -> tuple[prompting.Wording, dict[str, Any]]:
  """(the prompts, everything that the figures depend on but the weights' checksum)."""
  style = measuring.choose(run, _STYLE, "prompt.style", "plain")
  words = prompting.wording(style, _LOCALIZE_PROMPT.value, _REPAIR_PROMPT.value)
  texts = (words.system, words.localize, words.repair)
  return words, {
    "model": _MODEL.value,
    "step": measuring.best_step(_MODEL.value) if run else None,
    "dtype": measuring.choose(run, _DTYPE, "dtype", None) or measuring.stored_dtype(_MODEL.value),
    "engine": _ENGINE.value,
    "style": style,
    "prompts": [zlib.crc32(text.encode()) for text in texts],
    "samples": _SAMPLES.value,
    "temperature": _TEMPERATURE.value,
    "seed": _SEED.value,
    "max_tokens": _MAX_TOKENS.value,
    "max_prompt_tokens": _MAX_PROMPT_TOKENS.value,
  }


def _load(
  run: dict | None,
  words: prompting.Wording,
  settings: dict,
  width: int,
  line: progress.ProgressLine,
) -> tuple[solve.Solver, int]:
  """(Solver with the weights in its engine, checksum of the weights); `line` shows its progress."""
  from srl_jax.data.tokenizer import encode, load_tokenizer, stop_ids
  from srl_jax.policy import hf_files
  from srl_jax.policy.limits import check_positions
  from srl_jax.rollout.engine import SamplingParams

  folder = measuring.model_folder(run, settings["model"])
  tokenizer = load_tokenizer(folder)
  check_positions(
    hf_files.load_config(folder),
    settings["model"],
    ("--max_prompt_tokens", settings["max_prompt_tokens"]),
    {"--max_tokens": settings["max_tokens"]},
  )
  model = measuring.load_weights(run, folder, settings)
  ends = stop_ids(tokenizer, folder)
  engine = measuring.make_engine(tokenizer, ends, width, _SERVERS.value, _WEIGHTS_ROOT.value)
  engine.load_weights(model, settings["step"] or 0)
  solver = solve.Solver(
    engine=engine,
    encode=lambda messages: encode(tokenizer, messages),
    words=words,
    clones=pathlib.Path(_REPOSITORIES.value),
    params=SamplingParams(settings["max_tokens"], settings["temperature"], settings["seed"]),
    samples=settings["samples"],
    max_prompt_tokens=settings["max_prompt_tokens"],
    name=_name(settings["model"]),
    progress=lambda stage, responses: line.show(responses, {"of": stage}),
  )
  return solver, measuring.checksum(model)


def _name(model: str) -> str:
  """The model's name in predictions: of a folder its last part, since predictions are shared."""
  path = pathlib.Path(model)
  return path.resolve().name if path.is_dir() else model


if __name__ == "__main__":
  command_line.run(main, flags.values)
