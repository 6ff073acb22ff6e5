"""Measures how well a model solves benchmarks with final answers.

  python -m srl_jax.evaluate --model=Qwen/Qwen2.5-7B-Instruct --output=evals/base \\
      --benchmarks=amc23,aime24,aime25 --samples=32
  python -m srl_jax.evaluate --model=runs/srl_math --output=evals/srl --style=think \\
      --benchmarks=minerva_math,math500,mine.jsonl

The command measures greedy decoding and, with --samples=k, avg@k, pass@k and majority@k, each with
its standard error. The model is a Hugging Face folder or name, or a run's workdir: its best
checkpoint, with the prompts of the run. Problems are loaded from the hub, from --data=FOLDER with
NAME.jsonl files, or from a file.
There are two modes, stated in every table: whole (the whole solution in one response, think blocks
allowed anywhere; the paper's mode) and stepwise (turn by turn until the answer is boxed, without
the monologues of earlier turns).

OUTPUT/table.{txt,md,json}             the figures of all benchmarks in this folder
OUTPUT/BENCHMARK/greedy.jsonl          a line per problem with its graded responses
               sampled-k.jsonl         k samples each
               *.rollouts.jsonl        every response with its tokens, written when it is sampled
OUTPUT/settings.json                   the settings

With --engine=vllm, servers sample the responses (launch/vllm_server.sh); this command sends them
the weights. An interrupted command continues where it stopped. Further benchmarks or another
--samples can be added to a folder; another model or other settings are rejected.
"""

import itertools
import pathlib
from typing import Any

from absl import logging

from srl_jax import command_line, folders, measuring, progress
from srl_jax.errors import UserError

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
_ENGINE = flags.DEFINE_enum("engine", "builtin", ["builtin", "vllm"], "Engine that samples.")
_SERVERS = flags.DEFINE_list("servers", None, "vLLM's base URLs (launch/vllm_server.sh).")
_WEIGHTS_ROOT = flags.DEFINE_string(
  "weights_root", "/dev/shm", "Folder through which the servers receive the weights."
)
_BASE = flags.DEFINE_string(
  "base", None, "Folder of the model that --model (a run or adapters) started from, if moved."
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
_EXAMPLE = flags.DEFINE_bool(
  "example", None, "Show a worked answer in the prompt of a next step (default: the run's, or not)."
)
_OPEN_THINK = flags.DEFINE_bool(
  "open_think", None, "End the prompt of a next step with an open think tag (default: the run's)."
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
_WIDTH = flags.DEFINE_integer("width", 256, "Most responses that decode at the same time.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.", 0)

_SYSTEM = (_SYSTEM_FILE, "prompt.system_file", "")  # arguments of measuring.choose


def main(argv: list[str]) -> None:
  del argv
  logging.set_verbosity(logging.WARNING)  # orbax logs every rename
  measuring.check_sampling(_ENGINE.value, _SERVERS.value, _TEMPERATURE.value)
  benchmarks = _load_benchmarks()
  output = pathlib.Path(_OUTPUT.value)
  import jax  # after flags and files are checked: errors in them must not wait for this import

  from srl_jax.evals import passes, tables

  run = measuring.read_run(pathlib.Path(_MODEL.value), _BASE.value)
  settings = _settings(run)
  measuring.check_same(output, settings)
  # A finished folder prints its table without loading the weights.
  if _print_finished(output, settings, benchmarks):
    return
  # The built-in engine compiles programs of this width: no wider than there are responses.
  responses = max(map(len, benchmarks.values())) * max(1, _SAMPLES.value)
  with jax.set_mesh(
    measuring.mesh_of(_MESH.value, measuring.model_folder(run, settings["model"], _BASE.value))
  ):
    width = min(_WIDTH.value, responses)
    solver, settings["weights"] = _load(run, settings, benchmarks, width)
    advice = f"--width ({_WIDTH.value}) or --max_tokens"
    with measuring.sampling(solver.engine, output, advice):
      measuring.claim(output, settings)
      for name, questions in benchmarks.items():
        for k in _passes():
          with _pass_line(name, len(questions), k, settings["mode"]) as line:
            show = lambda _, responses, line=line: line.show(responses)
            passes.solve(solver, output / name, questions, k, _TEMPERATURE.value, show)
  print(tables.write(output, settings))


def _passes() -> list[int]:
  """Returns the samples per problem of every pass: 0 for the greedy one, and k with --samples."""
  return list(dict.fromkeys((0, _SAMPLES.value)))


def _print_finished(output: pathlib.Path, settings: dict, benchmarks: dict[str, list]) -> bool:
  """Prints the table if all passes in `output` are complete; returns whether they are."""
  from srl_jax.evals import passes, tables

  before = measuring.measured_settings(output, settings)
  for name, questions in benchmarks.items():
    for k in _passes():
      if not before or not passes.is_complete(output / name, questions, k):
        return False
  with folders.locked(output):
    print(f"{output} is finished; its table:\n{tables.write(output, before)}")
  return True


# ---------------------------------------------------------------------------------- settings


def _load_benchmarks() -> dict[str, list]:
  """Returns {short name: problems}, in the order of the flag."""
  from srl_jax.evals import math_benchmarks

  benchmarks = {}
  for spec in _BENCHMARKS.value:
    name = math_benchmarks.benchmark_name(spec)
    if name in benchmarks:
      raise UserError(f"--benchmarks: two are called {name!r}; rename a file or use two commands")
    benchmarks[name] = math_benchmarks.load_benchmark(spec, _DATA.value)[: _LIMIT.value]
  if not benchmarks:
    raise UserError("--benchmarks: name at least one")
  return benchmarks


def _task(run: dict | None, mode: str) -> str:
  """Returns the name of the task that provides the prompts.

  Raises:
    UserError: the run's task was added by its config file, so its prompt is not known here.
  """
  from srl_jax import tasks

  method = (run or {}).get("method", "")
  if method and method not in tasks.methods() and not measuring.choose(run, *_SYSTEM):
    raise UserError(
      f"--model={_MODEL.value}: its method {method!r} is a task of its config file; give the task's"
      " system prompt in a file, --system_file=FILE"
    )
  return tasks.task_of_mode(mode, method)


def _wording(run: dict | None, style: str):
  """Returns the tasks.PromptSettings from the flags and the run."""
  from srl_jax.tasks import PromptSettings

  return PromptSettings(
    style,
    measuring.choose(run, *_SYSTEM),
    measuring.choose(run, _EXAMPLE, "prompt.example", False),
    measuring.choose(run, _OPEN_THINK, "prompt.open_think", False),
  )


def _settings(run: dict | None) -> dict[str, Any]:
  """Returns everything that the figures depend on, except the weights' checksum."""
  from srl_jax.tasks import TASKS, opens_think, system_prompt

  mode = measuring.choose(run, _MODE, "eval.mode", "whole")
  # eval.mode=off only means that the run did not measure answers during training.
  mode = "whole" if mode == "off" else mode
  stepwise = mode == "stepwise"
  if stepwise and _STYLE.value == "plain":
    raise UserError(
      "--style=plain is for --mode=whole; the prompt of a next step has no plain form"
    )
  # A limit for another mode does not apply: a single step's would truncate whole solutions.
  same = run if (run or {}).get("eval.mode", mode) in (mode, "off") else None
  style = "think" if stepwise else measuring.choose(run, _STYLE, "prompt.style", "plain")
  task, wording = TASKS[_task(run, mode)], _wording(run, style)
  return {
    "model": _MODEL.value,
    "step": measuring.best_step(_MODEL.value) if run else None,
    "dtype": measuring.choose(run, _DTYPE, "dtype", None)
    or measuring.stored_dtype(_MODEL.value, _BASE.value),
    "engine": _ENGINE.value,
    "mode": mode,
    "style": style,
    "system": system_prompt(task, wording),
    "open_think": opens_think(task, wording),
    "temperature": _TEMPERATURE.value,
    "seed": _SEED.value,
    "max_tokens": measuring.choose(same, _MAX_TOKENS, "eval.max_tokens", 4096),
    "max_turns": measuring.choose(run, _MAX_TURNS, "eval.max_turns", 12),
    "max_prompt_tokens": measuring.choose(run, _MAX_PROMPT_TOKENS, "data.max_prompt_tokens", 4096),
  }


def _load(run: dict | None, settings: dict, benchmarks: dict[str, list], width: int):
  """Returns (Solver with the weights loaded into its engine, checksum of the weights)."""
  from srl_jax.data.tokenizer import load_tokenizer, stop_ids
  from srl_jax.evals.math_benchmarks import Solver, check_lengths
  from srl_jax.policy import hf_files
  from srl_jax.rollout.engine import SamplingParams
  from srl_jax.rollout.episodes import prompt_builder

  folder = measuring.model_folder(run, settings["model"], _BASE.value)
  tokenizer = load_tokenizer(folder)
  wording = _wording(run, settings["style"])
  build_prompt = prompt_builder(tokenizer, _task(run, settings["mode"]), wording)
  # Lengths are checked before the weights are loaded, which takes minutes for large models.
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
  model = measuring.load_weights(run, folder, settings, _BASE.value)
  # The longest prompt determines the shapes that the sampler compiles.
  first = max(len(build_prompt(question.problem, ()).token_ids) for question in questions)
  shapes = _shapes(settings, first, width, model.config.attention)
  ends = stop_ids(tokenizer, folder)
  servers, root = _SERVERS.value, _WEIGHTS_ROOT.value
  engine = measuring.make_engine(tokenizer, ends, width, servers, root, shapes)
  engine.load_weights(model, settings["step"] or 0)
  solver = Solver(
    engine=engine,
    build_prompt=build_prompt,
    mode=settings["mode"],
    params=SamplingParams(settings["max_tokens"], seed=settings["seed"]),
    max_turns=settings["max_turns"],
    max_prompt_tokens=settings["max_prompt_tokens"],
  )
  return solver, measuring.checksum(model)


def _shapes(settings: dict, first: int, width: int, kernel: str) -> list:
  """Returns the shapes that the sampler compiles for all benchmarks.

  Whole solutions need one shape for greedy decoding and one for samples. Stepwise solutions need
  one for prompts up to twice the first one's length, and one up to max_prompt_tokens with fewer
  slots in the same memory.

  Args:
    settings: from `_settings`.
    first: length in tokens of the longest prompt without steps.
    width: responses that decode at the same time.
    kernel: attention kernel of the model.
  """
  from srl_jax.policy.sharding import shards
  from srl_jax.rollout.slots import slot_shape

  max_tokens, on = settings["max_tokens"], (shards("b"), kernel)
  if settings["mode"] != "stepwise":
    groups = sorted({1, max(1, _SAMPLES.value)})
    return [slot_shape(width, n, first, max_tokens, *on) for n in groups]
  longest = settings["max_prompt_tokens"]
  short = slot_shape(width, 1, min(2 * first, longest), max_tokens, *on)
  # The KV cache has b (p + max_tokens) positions; keep their number.
  fewer = max(1, short.b * (short.p + max_tokens) // (longest + max_tokens))
  return [short, slot_shape(fewer, 1, longest, max_tokens, *on)]


def _pass_line(benchmark: str, problems: int, k: int, mode: str) -> progress.ProgressLine:
  """Returns the progress line of a pass; it counts the responses of earlier commands too."""
  from srl_jax.evals.passes import pass_name

  # A stepwise solution takes an unknown number of responses, one per turn.
  total = problems * max(1, k) if mode == "whole" else None
  title = f"{benchmark} {pass_name(k)}: response"
  return progress.ProgressLine(total, name=title, unit="responses")


if __name__ == "__main__":
  command_line.run(main, flags.values)
