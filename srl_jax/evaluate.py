"""How well a model solves benchmarks with final answers.

  python -m srl_jax.evaluate --model=Qwen/Qwen2.5-7B-Instruct --output=evals/base \\
      --benchmarks=amc23,aime24,aime25 --samples=32
  python -m srl_jax.evaluate --model=runs/srl_math --output=evals/srl --style=think \\
      --benchmarks=minerva_math,math500,mine.jsonl

measures greedy decoding and, with --samples=k, avg@k, pass@k and majority@k, each with its standard
error. The model is a Hugging Face folder or name, or a run's workdir: its best checkpoint, with the
prompts that the run used. Problems are from the hub, from --data=FOLDER with NAME.jsonl files, or
from a file.
Two modes, named in every table: whole (the whole solution in one response, think blocks allowed
anywhere; the paper's) and stepwise (turn by turn until the answer is boxed, monologues dropped).

OUTPUT/table.{txt,md,json}             the figures of all that this folder holds
OUTPUT/BENCHMARK/greedy.jsonl          a line for each problem with its responses, graded;
               sampled-k.jsonl         k samples each
               *.rollouts.jsonl        every response with its tokens, as it was sampled
OUTPUT/settings.json                   what was measured, and how

With --engine=vllm the responses are sampled by servers (launch/vllm_server.sh), which get the
weights from here. The same command continues where it stopped, and further benchmarks or another
--samples may be added to a folder; another model or other settings are refused.
"""

import contextlib
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

from absl import logging

from srl_jax import command_line, folders, progress
from srl_jax.errors import UserError, out_of_memory

flags = command_line.own_flags()
_MODEL = flags.DEFINE_string("model", None, "Model folder, workdir or hub name.", required=True)
_BENCHMARKS = flags.DEFINE_list(
  "benchmarks",
  None,
  "amc23, aime24, aime25, minerva_math, math500, FILE.jsonl, arithmetic[:N].",
  required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to or to continue.", required=True)
_MODE = flags.DEFINE_enum(
  "mode",
  None,
  ["whole", "stepwise"],
  "How problems are solved (default: as the run did, or whole).",
)
_SAMPLES = flags.DEFINE_integer("samples", 0, "k of avg@k, pass@k, majority@k; 0: greedy only.", 0)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the k samples.")
_DATA = flags.DEFINE_string("data", None, "Folder with NAME.jsonl (default: the hub).")
_LIMIT = flags.DEFINE_integer("limit", None, "First problems of each benchmark only.", 1)
_ENGINE = flags.DEFINE_enum("engine", "builtin", ["builtin", "vllm"], "Who samples.")
_SERVERS = flags.DEFINE_list("servers", None, "vLLM's base URLs (launch/vllm_server.sh).")
_WEIGHTS_ROOT = flags.DEFINE_string(
  "weights_root", "/dev/shm", "Folder through which the weights go to the servers."
)
_STYLE = flags.DEFINE_enum(
  "style",
  None,
  ["plain", "think"],
  "Prompt for whole solutions: plain chain of thought, or think before each step (default: the"
  " run's own, else plain).",
)
_SYSTEM_FILE = flags.DEFINE_string(
  "system_file", None, "Text file that replaces the system prompt (default: the run's own)."
)
_MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens", None, "Of a response (default: that of a run of the same mode, else 4096).", 1
)
_MAX_TURNS = flags.DEFINE_integer("max_turns", None, "Of a stepwise solution (the run's or 12).", 1)
_MAX_PROMPT_TOKENS = flags.DEFINE_integer(
  "max_prompt_tokens", None, "At which a stepwise solution ends (the run's or 4096).", 1
)
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16"],
  "Of computation (default: the run's, or that of the model's files; CPUs are faster in float32).",
)
_MESH = flags.DEFINE_string("mesh", None, "A preset or sizes (default: fsdp=all devices).")
_WIDTH = flags.DEFINE_integer("width", 256, "Most responses that are decoded side by side.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.", 0)

_SYSTEM = (_SYSTEM_FILE, "prompt.system_file", "")
# Names of the weights. They may change as long as the weights' checksum is the same.
_NAMES_OF_WEIGHTS = ("model", "step")


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)  # orbax logs every rename
  _check_flags()
  benchmarks = _load_benchmarks()
  output = pathlib.Path(_OUTPUT.value)
  import jax  # after the flags and files: a mistake in them must not wait for it

  from srl_jax.config import MESHES
  from srl_jax.errors import EngineError
  from srl_jax.evals import passes, tables
  from srl_jax.policy.sharding import make_mesh

  run = _read_run(pathlib.Path(_MODEL.value))
  settings = _settings(run)
  _check_same(output, settings)
  mesh = _MESH.value or f"fsdp={jax.device_count()}"
  responses = max(map(len, benchmarks.values())) * max(1, _SAMPLES.value)
  with contextlib.ExitStack() as ends:
    ends.enter_context(jax.set_mesh(make_mesh(MESHES.get(mesh, mesh))))
    width = min(_WIDTH.value, responses)
    solver, settings["weights"] = _load(run, settings, benchmarks, width)
    try:
      ends.enter_context(folders.locked(output))
      _claim(output, settings)
      for name, questions in benchmarks.items():
        show = _show_progress(name)
        for k in dict.fromkeys((0, _SAMPLES.value)):  # greedy, and the samples if there are any
          passes.solve(solver, output / name, questions, k, _TEMPERATURE.value, show)
    except KeyboardInterrupt:
      print(f"\nstopped; the same command continues from what {output} holds", flush=True)
      raise SystemExit(130) from None
    except EngineError as error:
      raise UserError(f"{error}. The same command continues from what {output} holds") from error
    except jax.errors.JaxRuntimeError as error:
      refusal = out_of_memory(error, f"--width ({_WIDTH.value}) or --max_tokens")
      if refusal:
        raise refusal from error
      raise
    finally:
      solver.engine.close()
  print(tables.write(output, settings))


# ---------------------------------------------------------------------------------- settings


def _check_flags() -> None:
  if (_ENGINE.value == "vllm") != bool(_SERVERS.value):
    raise UserError(
      "--servers: give the base URLs of the servers with --engine=vllm, and only then"
    )
  if _TEMPERATURE.value <= 0:
    raise UserError(f"--temperature={_TEMPERATURE.value:g}: samples need a value greater than 0")


def _load_benchmarks() -> dict[str, list]:
  """{short name: problems}, in the order of the flag."""
  from srl_jax.evals import math_benchmarks

  benchmarks = {}
  for spec in _BENCHMARKS.value:
    name = math_benchmarks.benchmark_name(spec)
    if name in benchmarks:
      raise UserError(f"--benchmarks: two are called {name!r}; rename a file or run them apart")
    benchmarks[name] = math_benchmarks.load_benchmark(spec, _DATA.value)[: _LIMIT.value]
  if not benchmarks:
    raise UserError("--benchmarks: name at least one")
  return benchmarks


def _read_run(path: pathlib.Path) -> dict | None:
  """The config of the run in a workdir, flat; None if `path` is a model."""
  from srl_jax.learner.checkpoint import Checkpoints, read_config

  if Checkpoints.present(path):
    return folders.flatten(read_config(path))
  if (path / "metrics.jsonl").exists():
    raise UserError(f"--model={path}: a run without a checkpoint; wait until it has saved one")
  return None


def _choose(run: dict | None, flag, key: str, default):
  """A setting: the flag's value, else the run's own, else the default."""
  return flag.value if flag.value is not None else (run or {}).get(key, default)


def _task(run: dict | None, mode: str) -> str:
  """The name of the task that has the prompts.

  Raises UserError for a run of a task that a config file has added: its prompt is not known here.
  """
  from srl_jax import tasks

  method = (run or {}).get("method", "")
  if method and method not in tasks.methods() and not _choose(run, *_SYSTEM):
    raise UserError(
      f"--model={_MODEL.value}: its method {method!r} is a task of its config file; give the task's"
      " system prompt in a file, --system_file=FILE"
    )
  return tasks.task_of_mode(mode, method)


def _settings(run: dict | None) -> dict[str, Any]:
  """Everything that the figures depend on, but the weights' checksum."""
  from srl_jax.tasks import TASKS, system_prompt

  mode = _choose(run, _MODE, "eval.mode", "whole")
  mode = "whole" if mode == "off" else mode
  stepwise = mode == "stepwise"
  if stepwise and _STYLE.value == "plain":
    raise UserError(
      "--style=plain is for --mode=whole; the prompt of a next step has no plain form"
    )
  # Not the limit of another mode: a step's would cut whole solutions off.
  same = run if (run or {}).get("eval.mode", mode) in (mode, "off") else None
  style = "think" if stepwise else _choose(run, _STYLE, "prompt.style", "plain")
  return {
    "model": _MODEL.value,
    "step": _best_step() if run else None,
    "dtype": _choose(run, _DTYPE, "dtype", None) or _stored_dtype(),
    "engine": _ENGINE.value,
    "mode": mode,
    "style": style,
    "system": system_prompt(TASKS[_task(run, mode)], style, _choose(run, *_SYSTEM)),
    "temperature": _TEMPERATURE.value,
    "seed": _SEED.value,
    "max_tokens": _choose(same, _MAX_TOKENS, "eval.max_tokens", 4096),
    "max_turns": _choose(run, _MAX_TURNS, "eval.max_turns", 12),
    "max_prompt_tokens": _choose(run, _MAX_PROMPT_TOKENS, "data.max_prompt_tokens", 4096),
  }


def _best_step() -> int:
  from srl_jax.learner.checkpoint import Checkpoints

  checkpoints = Checkpoints(_MODEL.value)
  step = checkpoints.best_step()
  checkpoints.close()
  return step


def _stored_dtype() -> str:
  from srl_jax.policy import hf_files

  return hf_files.computation_dtype(hf_files.resolve_model(_MODEL.value))


def _check_same(output: pathlib.Path, settings: dict) -> None:
  """Raises UserError if the folder holds figures of other settings than these."""
  path = output / "settings.json"
  if not path.exists():
    return
  try:
    before = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: not JSON ({error}); give another --output") from error
  if not isinstance(before, dict):
    raise UserError(f"{path}: not an evaluation's settings; give another --output")
  shared = settings.keys() & before.keys()  # the weights' checksum is missing before they load
  same_weights = "weights" not in shared or before["weights"] == settings["weights"]
  folders.check_same_settings(
    output,
    {key: before[key] for key in shared},
    {key: settings[key] for key in shared},
    holds="an evaluation of something else",
    flag="--output",
    free=_NAMES_OF_WEIGHTS if same_weights else (),
  )


def _claim(output: pathlib.Path, settings: dict) -> None:
  _check_same(output, settings)
  folders.write_json(output / "settings.json", settings)


def _load(run: dict | None, settings: dict, benchmarks: dict[str, list], width: int):
  """(Solver with the weights in its engine, checksum of the weights)."""
  import ml_collections

  from srl_jax.data.tokenizer import load_tokenizer, stop_ids
  from srl_jax.evals.math_benchmarks import Solver, check_lengths
  from srl_jax.learner import setup
  from srl_jax.policy import hf_files
  from srl_jax.rollout.engine import SamplingParams
  from srl_jax.rollout.episodes import prompt_builder

  folder = hf_files.resolve_model(run["model"] if run else settings["model"])
  tokenizer = load_tokenizer(folder)
  build_prompt = prompt_builder(
    tokenizer, _task(run, settings["mode"]), settings["style"], _choose(run, *_SYSTEM)
  )
  questions = list(itertools.chain(*benchmarks.values()))
  check_lengths(
    hf_files.load_config(folder),
    settings["model"],
    build_prompt,
    questions,
    mode=settings["mode"],
    max_tokens=settings["max_tokens"],
    max_prompt_tokens=settings["max_prompt_tokens"],
  )
  init_from = settings["model"] if run else ""
  chosen = ml_collections.ConfigDict({"init_from": init_from, "dtype": settings["dtype"]})
  model = setup.initial_weights(chosen, folder)
  first = max(len(build_prompt(question.problem, ()).token_ids) for question in questions)
  shapes = _shapes(settings, first, width, model.config.attention)
  engine = _make_engine(tokenizer, stop_ids(tokenizer, folder), width, shapes)
  engine.load_weights(model, settings["step"] or 0)
  solver = Solver(
    engine=engine,
    build_prompt=build_prompt,
    mode=settings["mode"],
    params=SamplingParams(settings["max_tokens"], seed=settings["seed"]),
    max_turns=settings["max_turns"],
    max_prompt_tokens=settings["max_prompt_tokens"],
  )
  return solver, _checksum(model)


def _shapes(settings: dict, first: int, width: int, kernel: str) -> list:
  """The sampler's shapes for all benchmarks; `first` is the longest prompt without steps.

  Whole solutions: greedy ones, and the samples. Stepwise ones: prompts up to twice as long as the
  first, and those up to max_prompt_tokens, of which fewer decode at a time, in the same memory.
  """
  from srl_jax.policy.sharding import shards
  from srl_jax.rollout.slots import slot_shape

  max_tokens, on = settings["max_tokens"], (shards("b"), kernel)
  if settings["mode"] != "stepwise":
    groups = sorted({1, max(1, _SAMPLES.value)})
    return [slot_shape(width, n, first, max_tokens, *on) for n in groups]
  longest = settings["max_prompt_tokens"]
  short = slot_shape(width, 1, min(2 * first, longest), max_tokens, *on)
  fewer = max(1, short.b * (short.p + max_tokens) // (longest + max_tokens))
  return [short, slot_shape(fewer, 1, longest, max_tokens, *on)]


def _make_engine(tokenizer, stop_ids: list[int], width: int, shapes: list):
  from srl_jax.rollout.sampler import Sampler
  from srl_jax.rollout.vllm_client import VllmEngine

  if _ENGINE.value == "builtin":
    return Sampler(tokenizer, stop_ids, width, shapes=shapes)
  return VllmEngine(_SERVERS.value, tokenizer, stop_ids, weights_root=_WEIGHTS_ROOT.value)


def _show_progress(benchmark: str) -> Callable[[str, int], None]:
  """A function that prints how many responses a pass has, now and then."""
  pace = progress.Pace()
  return lambda name, responses: pace.say(f"{benchmark} {name}: {responses} responses")


def _checksum(model) -> int:
  """Of all weights' bits: the same on every mesh, since whole numbers add in any order."""
  import jax
  import jax.numpy as jnp

  bits = lambda weight: jax.lax.bitcast_convert_type(weight, jnp.uint32)
  sums = jax.jit(lambda weights: [bits(weight).sum(dtype=jnp.uint32) for weight in weights])
  total = 0
  for one in sums(jax.tree.leaves(model)):
    # The factor makes the order of the weights count.
    total = (31 * total + int(one)) % 2**32
  return total


if __name__ == "__main__":
  command_line.run(main, flags.values)
