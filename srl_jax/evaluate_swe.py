"""Writes a model's patches for the issues of SWE-bench Verified (paper, 5.3 and Table 4).

  launch/swe_repositories.sh DIR
  python -m srl_jax.evaluate_swe --model=runs/srl_swe --settings=oracle,end_to_end \\
      --repositories=DIR --output=evals/swe/srl
  python -m srl_jax.evals.swe.judge --predictions=evals/swe/srl/oracle/predictions.jsonl \\
      --data=verified --output=evals/swe/srl/oracle --by=docker

There are two settings. oracle: the prompt contains the issue and the files that the fix changes,
and the policy writes SEARCH/REPLACE edits. end_to_end, as in Agentless Mini: the policy first
selects files from the list of all names, and is then shown these. Each response is decoded
greedily; with --samples=k, k patches are sampled and the most frequent one, by the normal form of
its code, is used.

The model is a Hugging Face folder or name, or a run's workdir: its best checkpoint. No code of the
repositories runs here; the judge runs it. docs/swe.md describes the protocol and what the paper
leaves open.

OUTPUT/SETTING/predictions.jsonl   SWE-bench's own form, a line per instance
               repairs.jsonl       files in the prompt, every edit and its outcome
               prompts.jsonl, locations.jsonl, *.rollouts.jsonl    see srl_jax.evals.swe.solve
OUTPUT/table.{txt,md,json}         the figures, with those of judged.jsonl if there is one
OUTPUT/settings.json               the settings

With --engine=vllm, servers sample (launch/vllm_server.sh); this command sends them the weights. An
interrupted command continues where it stopped; another model or other settings are rejected.
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
_BASE = flags.DEFINE_string(
  "base", None, "Folder of the model that --model (a run or adapters) started from, if moved."
)
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
_ENGINE = flags.DEFINE_enum("engine", "builtin", ["builtin", "vllm"], "Engine that samples.")
_SERVERS = flags.DEFINE_list("servers", None, "vLLM's base URLs (launch/vllm_server.sh).")
_WEIGHTS_ROOT = flags.DEFINE_string(
  "weights_root", "/dev/shm", "Folder through which the servers receive the weights."
)
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16"], "Of computation (default: the run's or the files')."
)
_MESH = flags.DEFINE_string("mesh", None, "A preset or sizes (default: fsdp=all devices).")
_WIDTH = flags.DEFINE_integer("width", 16, "Most responses that decode at the same time.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.", 0)


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)  # orbax logs every rename
  _check_flags()
  found = instances.load(_DATA.value, _LIMIT.value)
  _check_rows(found)
  output = pathlib.Path(_OUTPUT.value)
  import jax  # after flags and files are checked: errors in them must not wait for this import

  run = measuring.read_run(pathlib.Path(_MODEL.value), _BASE.value)
  words, settings = _settings(run)
  measuring.check_same(output, settings)
  with jax.set_mesh(
    measuring.mesh_of(_MESH.value, measuring.model_folder(run, settings["model"], _BASE.value))
  ):
    # The sampler's programs have this width: no wider than there are responses.
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
  """Raises UserError for flags that contradict each other."""
  measuring.check_sampling(_ENGINE.value, _SERVERS.value, _TEMPERATURE.value)
  # Flags are checked before data and model are loaded.
  unknown = [name for name in _SETTINGS.value if name not in solve.SETTINGS]
  if unknown or not _SETTINGS.value:
    raise UserError(f"--settings={','.join(_SETTINGS.value)}: use {', '.join(solve.SETTINGS)}")


def _check_rows(found: list[instances.Instance]) -> None:
  """Raises UserError for a row that cannot be shown, before a model is loaded."""
  root = pathlib.Path(_REPOSITORIES.value)
  for instance in found:
    repositories.open_repository(root, instance.repo, instance.base_commit)
    if solve.ORACLE in _SETTINGS.value and not instance.gold_files():
      raise UserError(
        f"--data={_DATA.value}: {instance.id} has no patch, so the oracle setting has no files"
        " to show; use --settings=end_to_end"
      )


def _settings(run: dict | None) -> tuple[prompting.Wording, dict[str, Any]]:
  """Returns (the prompts, everything that the figures depend on except the weights' checksum)."""
  style = measuring.choose(run, _STYLE, "prompt.style", "plain")
  words = prompting.wording(style, _LOCALIZE_PROMPT.value, _REPAIR_PROMPT.value)
  texts = (words.system, words.localize, words.repair)
  return words, {
    "model": _MODEL.value,
    "step": measuring.best_step(_MODEL.value) if run else None,
    "dtype": measuring.choose(run, _DTYPE, "dtype", None)
    or measuring.stored_dtype(_MODEL.value, _BASE.value),
    "engine": _ENGINE.value,
    "style": style,
    # Checksums: the texts themselves are long, and only their equality matters.
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
  """Returns (Solver with the weights loaded into its engine, checksum of the weights).

  `line` shows the number of responses.
  """
  from srl_jax.data.tokenizer import encode, load_tokenizer, stop_ids
  from srl_jax.policy import hf_files
  from srl_jax.policy.limits import check_positions
  from srl_jax.rollout.engine import SamplingParams

  folder = measuring.model_folder(run, settings["model"], _BASE.value)
  tokenizer = load_tokenizer(folder)
  check_positions(
    hf_files.load_config(folder),
    settings["model"],
    ("--max_prompt_tokens", settings["max_prompt_tokens"]),
    {"--max_tokens": settings["max_tokens"]},
  )
  model = measuring.load_weights(run, folder, settings, _BASE.value)
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
  """Returns the model's name for predictions; of a folder the last part, as they are shared."""
  path = pathlib.Path(model)
  return path.resolve().name if path.is_dir() else model


if __name__ == "__main__":
  command_line.run(main, flags.values)
