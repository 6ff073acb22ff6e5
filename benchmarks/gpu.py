"""What one NVIDIA card does: the update, the sampler, and the same update in torch.

  python -m benchmarks.gpu                      all sections, under 8 minutes on one H100
  python -m benchmarks.gpu --sections=check,update_7b
  python -m benchmarks.gpu --tiny               a minute or two, on any machine

Needs jax, flax, optax, ml_collections, torch and transformers, and no network. Every section is a
process of its own, so that its peak of memory is its own; the results go to benchmarks/gpu.json
and, as a table, to benchmarks/gpu.md. Weights are random: speed does not depend on them.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUDGET = 480  # seconds of a whole run on a card
LIMIT = 150  # seconds of a section
LEAST = 15  # seconds, with less of the budget left no section is begun
SAMPLES = 8  # responses of a group
# Qwen2.5's own shapes; of 7B as many layers as one card holds with float32 weights, moments and
# gradients.
SHAPES = {
  "7B, 8 layers": dict(d=3584, f=18944, l=8, n=28, k=4, h=128, v=152064, tied=False),
  "1.5B": dict(d=1536, f=8960, l=28, n=12, k=2, h=128, v=151936, tied=True),
  "tiny": dict(d=64, f=128, l=2, n=4, k=2, h=32, v=512, tied=True),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """An update: `groups` groups of a prompt and SAMPLES responses, of these many tokens.

  shared and naive: tokens_per_device with each prompt once, and with a copy for each response.
  """

  prompt: int
  response: int
  groups: int
  shared: int
  naive: int


CASES = {
  "1500/1000": Case(1500, 1000, 4, 19072, 20096),
  "2000/500": Case(2000, 500, 6, 18048, 20096),
  "tiny": Case(40, 16, 2, 256, 256),
}
REPEATS = 3


# ---------------------------------------------------------------------------------- our side


def model_config(shape: str):
  """The architecture, computing in bfloat16, or on a CPU, which has none, in float32."""
  import jax

  from srl_jax.policy.model import ModelConfig
  from srl_jax.policy.sharding import platform

  s = SHAPES[shape]
  config = ModelConfig(
    vocab_size=s["v"],
    hidden_size=s["d"],
    intermediate_size=s["f"],
    num_hidden_layers=s["l"],
    num_attention_heads=s["n"],
    num_key_value_heads=s["k"],
    head_dim=s["h"],
    tie_word_embeddings=s["tied"],
    dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
  )
  return config.on_platform(platform())


def make_groups(case: Case, vocabulary: int, shared: bool):
  """Random groups; not shared: every response is a group of its own, with its own prompt."""
  import numpy as np

  from srl_jax.learner.rows import PackedGroup, Response

  rng = np.random.default_rng(0)
  ids = lambda count: rng.integers(0, vocabulary, count).tolist()
  logprobs = (-np.ones(case.response)).tolist()
  weight = 1 / (case.groups * SAMPLES * case.response)  # of each token in the loss
  groups = []
  for _ in range(case.groups):
    prompt = ids(case.prompt)
    responses = [
      Response(ids(case.response), logprobs, float(rng.normal()), weight) for _ in range(SAMPLES)
    ]
    parts = [responses] if shared else [[response] for response in responses]
    groups += [PackedGroup(prompt, part) for part in parts]
  return groups


def algorithm_with(**values):
  """The config's group algorithm with other values."""
  from ml_collections import FrozenConfigDict

  from srl_jax.config import defaults

  algorithm = defaults().algorithm.unlock()
  algorithm.update(values)
  return FrozenConfigDict(algorithm)


def flops_of(config, groups) -> float:
  """learner.update.update_flops of packed groups."""
  from types import SimpleNamespace

  from srl_jax.learner.update import update_flops

  as_sampled = [
    SimpleNamespace(
      prompt=SimpleNamespace(token_ids=group.prompt_ids), rollouts=list(group.responses)
    )
    for group in groups
  ]
  return update_flops(config, as_sampled)


def timed(run) -> list[float]:
  """Seconds of each of REPEATS calls, after one to warm up."""
  run()
  seconds = []
  for _ in range(REPEATS):
    begun = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - begun)
  return seconds


def peak_bytes() -> int | None:
  import jax

  stats = jax.local_devices()[0].memory_stats()
  return stats.get("peak_bytes_in_use") if stats else None


def program_bytes(compiled) -> int:
  """The most bytes in use while a program runs, as srl_jax.planning.programs counts them."""
  m = compiled.memory_analysis()
  if m is None:  # JAX says that a platform need not tell it
    return 0
  results = m.output_size_in_bytes - m.alias_size_in_bytes
  most = m.argument_size_in_bytes + results + m.temp_size_in_bytes
  return max(m.peak_memory_in_bytes, most) + m.generated_code_size_in_bytes


class Programs(NamedTuple):
  """The compiled programs of an update.

  Fields: accumulate and score, by `shapes` of a micro-batch; apply; estimate, the most bytes in use
  while one of them runs.
  """

  accumulate: dict
  apply: object
  score: dict
  estimate: int


def shapes(rows) -> tuple:
  import jax

  return tuple(x.shape for x in jax.tree.leaves(rows))


def compile_update(tx, model, moments, packed, loss) -> Programs:
  """Every program of an update of these micro-batches, compiled once."""
  import jax

  from srl_jax.learner import update as learner

  grads = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model)
  accumulate, score = {}, {}
  for rows in packed:
    if shapes(rows) not in accumulate:
      program = learner.accumulate.lower(grads, model, rows, None, None, loss)
      accumulate[shapes(rows)] = program.compile()
      score[shapes(rows)] = learner.logprobs_of.lower(model, rows, loss).compile()
  apply = learner.apply.lower(tx, model, moments, grads).compile()
  # While gradients are summed and tokens scored the moments lie beside them.
  beside = sum(x.nbytes for x in jax.tree.leaves(moments))
  needs = [beside + program_bytes(x) for x in (*accumulate.values(), *score.values())]
  return Programs(
    accumulate=accumulate,
    apply=apply,
    score=score,
    estimate=max(program_bytes(apply), *needs),
  )


def update(shape: str, case: str, sharing: str, remat: str, chunk: int) -> dict:
  """Our update, float32 masters and bfloat16 compute: seconds, MFU, memory.

  The programs and the order of learner.update.train_step, compiled ahead to ask them for their
  memory. Rows are laid out for kernels on a CPU too.
  """
  import jax
  import optax

  from srl_jax.learner import packing
  from srl_jax.learner import update as learner
  from srl_jax.policy.model import init

  given = CASES[case]
  config = model_config(shape)
  groups = make_groups(given, config.vocab_size, sharing == "shared")
  loss = learner.Loss(algorithm_with(), chunk=chunk, remat=remat)
  # Every case reads the same kind of rows: as many tokens as the case says, in whole groups.
  rows = packing.pack(
    groups,
    tokens_per_device=given.shared if sharing == "shared" else given.naive,
    shards=1,
    layout="lines",
  )
  packed = [learner.on_device(part) for part in rows]
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-7))
  model = init(config, 0)
  state = [model, learner.init_moments(tx, model)]
  del model
  programs = compile_update(tx, *state, packed, loss)

  def step():
    grads, sums = learner.zeros(state[0]), []
    for part in packed:
      grads, found, _ = programs.accumulate[shapes(part)](grads, state[0], part, None, None)
      sums.append(found)
    state[0], state[1], norm = programs.apply(*state, grads)
    return learner.step_metrics(learner.StepOutput(sums, [], norm), 1)

  # The log-prob pass of the reference policy (algorithm.kl) or of k > 1 steps a batch.
  def score():
    jax.block_until_ready([programs.score[shapes(part)](state[0], part) for part in packed])

  seconds, score_seconds = timed(step), timed(score)
  tokens = sum(group.size() for group in groups)
  second, score_second = statistics.median(seconds), statistics.median(score_seconds)
  flops = flops_of(config, groups)
  return dict(
    seconds=seconds,
    micro_batches=len(packed),
    shapes=sorted(
      {str(part.tokens_bt.shape + part.layout.token_index_bml.shape[1:]) for part in rows}
    ),
    real_share=tokens / sum(part.tokens_bt.size for part in rows),
    tokens_per_second=tokens / second,
    sequence_tokens_per_second=given.groups * SAMPLES * (given.prompt + given.response) / second,
    flops=flops,
    tflops=flops / second / 1e12,
    score_seconds=score_seconds,
    score_tokens_per_second=tokens / score_second,
    score_tflops=flops / 3 / score_second / 1e12,
    peak_bytes=peak_bytes(),
    estimated_bytes=programs.estimate,
  )


def ceiling(size: int) -> dict:
  """A plain bfloat16 matrix product of size^3: the most that the card gives today."""
  import jax
  import jax.numpy as jnp

  a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
  product = jax.jit(lambda a, b: a @ b)
  count = 20

  def run():
    for _ in range(count):
      c = product(a, b)
    c.block_until_ready()

  second = statistics.median(timed(run)) / count
  return dict(seconds=second, tflops=2 * size**3 / second / 1e12)


def check() -> dict:
  """This platform's kernel against plain XLA in float32: a small model, ragged groups.

  Returns the relative errors (norm of the difference / norm) of the loss's gradient, and 0 or 1 for
  a leak: whether a change of one group changes a bit of another group's log-probs.
  """
  import jax
  import numpy as np

  from srl_jax.learner import packing
  from srl_jax.learner import update as learner
  from srl_jax.learner.rows import PackedGroup, Response
  from srl_jax.policy.model import init

  rng = np.random.default_rng(1)
  ids = lambda count: rng.integers(0, 512, count).tolist()

  def group(prompt, lengths):
    responses = [Response(ids(n), [-6.0] * n, float(rng.normal()), 0.1 / n) for n in lengths]
    return PackedGroup(ids(prompt), responses)

  groups = [group(97, [30, 61, 5]), group(12, [100, 3]), group(200, [17, 40, 90]), group(60, [9])]
  config = dataclasses.replace(model_config("tiny"), head_dim=64)
  loss = learner.Loss(algorithm_with(importance_cap=0.0), chunk=128)

  def gradient(config, groups, lines):
    model = init(dataclasses.replace(config, attention="xla"), 0)
    model = jax.tree.map(lambda x: x * 2, model)  # far from uniform
    model.config = model.layers.config = config
    shapes = packing.row_shapes(packing.lengths_of(groups), 1024, "lines")
    (rows,) = packing.fill(groups, shapes[:1], 1)
    if not lines:
      rows = rows._replace(layout=None)
    run = jax.jit(jax.grad(learner.batch_loss, has_aux=True), static_argnums=4)
    grad, (_, logprobs) = run(model, learner.on_device(rows), None, None, loss)
    kept = rows.loss_weights_bs > 0
    segments = np.take_along_axis(rows.segments_bt, rows.hidden_index_bs, axis=1)
    flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(grad)])
    return flat, np.asarray(logprobs)[kept], segments[kept]

  with jax.default_matmul_precision("highest"):  # a card's own float32 products are TF32
    exact = gradient(dataclasses.replace(config, dtype="float32", attention="xla"), groups, False)
  plain = gradient(dataclasses.replace(config, attention="xla"), groups, False)
  ours = gradient(config, groups, True)
  error = lambda found: float(np.linalg.norm(found - exact[0]) / np.linalg.norm(exact[0]))
  # The row's groups stand from the longest to the shortest: change the second's responses.
  changed = list(groups)
  changed[1] = group(12, [100, 3])
  other = gradient(config, changed, True)
  same = [bool((ours[1][ours[2] == s] == other[1][other[2] == s]).all()) for s in (1, 2, 3, 4)]
  return dict(
    kernel=config.attention,
    gradient_error=error(ours[0]),
    gradient_error_of_plain_xla=error(plain[0]),
    groups_unchanged=same,
    leak=int(sum(same) != 3),
  )


def sampler(shape: str, responses: int, prompt: int, tokens: int) -> dict:
  """The built-in engine: tokens per second, prompts read within the time."""
  import numpy as np

  from srl_jax.policy.model import init
  from srl_jax.rollout.engine import Prompt, SamplingParams
  from srl_jax.rollout.sampler import Sampler

  class NoText:
    def decode(self, ids, **_):
      return ""

  config = model_config(shape)
  engine = Sampler(NoText(), [], responses)
  engine.load_weights(init(config, 0), 0)
  rng = np.random.default_rng(0)
  prompts = [
    Prompt(str(i), tuple(rng.integers(0, config.vocab_size, prompt).tolist()))
    for i in range(responses // SAMPLES)
  ]
  params = SamplingParams(tokens)
  seconds = timed(lambda: list(engine.sample(prompts, SAMPLES, params)))
  second = statistics.median(seconds)
  return dict(seconds=seconds, tokens_per_second=responses * tokens / second)


# ---------------------------------------------------------------------------------- torch


def torch_update(shape: str, case: str, rows: int, compiled: bool) -> dict:
  """The same update in torch and transformers: SDPA, checkpointed layers, fused AdamW, autocast.

  One response a row with its own prompt, as the published trainers do it; logits of response tokens
  only, in float32; `rows` sequences a micro-batch. `compiled`: the layers, if torch can do that
  here; the result says whether it did, and else why not.
  """
  import torch
  import transformers
  from torch.utils.checkpoint import checkpoint

  given, s = CASES[case], SHAPES[shape]
  cuda = torch.cuda.is_available()
  device = "cuda" if cuda else "cpu"
  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    vocab_size=s["v"],
    hidden_size=s["d"],
    intermediate_size=s["f"],
    num_hidden_layers=s["l"],
    num_attention_heads=s["n"],
    num_key_value_heads=s["k"],
    head_dim=s["h"],
    tie_word_embeddings=s["tied"],
    use_cache=False,
    attn_implementation="sdpa",
  )
  with torch.device(device):
    model = transformers.Qwen2ForCausalLM(config)
  model.train()
  model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
  optimizer = torch.optim.AdamW(model.parameters(), lr=5e-7, fused=cuda)
  p, r, count = given.prompt, given.response, given.groups * SAMPLES
  tokens = torch.randint(0, s["v"], (count, p + r), device=device)
  advantages = torch.randn(count, device=device)

  def logprobs_of(hidden, targets):
    logits = torch.nn.functional.linear(hidden, model.lm_head.weight).float()
    return torch.gather(logits, -1, targets[:, None])[:, 0] - torch.logsumexp(logits, -1)

  def step():
    for i in range(0, count, rows):
      part = tokens[i : i + rows]
      with torch.autocast(device, torch.bfloat16, enabled=cuda):
        hidden = model.model(input_ids=part).last_hidden_state[:, p - 1 : -1]
        hidden, targets = hidden.reshape(-1, hidden.shape[-1]), part[:, p:].reshape(-1)
        parts = [
          checkpoint(logprobs_of, h, t, use_reentrant=False)
          for h, t in zip(hidden.split(2048), targets.split(2048))
        ]
      logprobs = torch.cat(parts).view(len(part), r)
      ratio = torch.exp(logprobs - logprobs.detach())
      weights = torch.exp(logprobs.detach() + 1).clamp(max=2.0)
      a = advantages[i : i + rows, None]
      objective = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) * weights
      (-objective.mean(dim=1).sum() / count).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if cuda:
      torch.cuda.synchronize()

  failure = None
  if compiled:
    for layer in model.model.layers:
      layer.compile()
    try:
      step()
    except Exception as error:  # its compilers want a C compiler and Python's headers
      failure, compiled = str(error)[-3000:], False
      torch.compiler.set_stance("force_eager")
      optimizer.zero_grad(set_to_none=True)
  seconds = timed(step)
  return dict(
    seconds=seconds,
    compiled=compiled,
    compile_error=failure,
    sequence_tokens_per_second=count * (p + r) / statistics.median(seconds),
    peak_bytes=torch.cuda.max_memory_allocated() if cuda else None,
  )


# ---------------------------------------------------------------------------------- sections


def sections(tiny: bool) -> dict:
  """{name: (function, arguments)}, the most important first; a name's first word is its section."""
  if tiny:
    wide, small, cases, size, chunk = "tiny", "tiny", ["tiny"], 256, 64
    widths, lengths = (16,), (16, 8)
  else:
    wide, small, cases, size, chunk = "7B, 8 layers", "1.5B", ["1500/1000", "2000/500"], 8192, 2048
    widths, lengths = (64, 256), (512, 256)
  ours = lambda shape, case, sharing, remat="full": (update, (shape, case, sharing, remat, chunk))
  both = lambda case: {
    f"update_7b {case} {sharing}": ours(wide, case, sharing) for sharing in ("shared", "naive")
  }
  first, *others = cases
  found = {"ceiling": (ceiling, (size,)), "check": (check, ())} | both(first)
  found[f"torch {first}"] = (torch_update, (wide, first, 8, not tiny))
  found[f"update_7b_matmuls {first} shared"] = ours(wide, first, "shared", "matmuls")
  for case in others:
    found |= both(case)
  found[f"update_1.5b {first} shared"] = ours(small, first, "shared")
  for responses in widths:
    found[f"sampler {responses}"] = (sampler, (small, responses, *lengths))
  return found


def run_section(name: str, tiny: bool, seconds: float | None, cache: str) -> dict:
  """The section's result, from a process of its own; {"error": its last lines} if it fails.

  seconds: after which it is ended, or None; cache: folder of compiled programs, for all sections.
  """
  environment = dict(os.environ, XLA_CLIENT_MEM_FRACTION="0.95")
  environment.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # its old name: JAX refuses both
  paths = [str(ROOT), os.environ.get("PYTHONPATH")]
  environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
  environment.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
  environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  command = [sys.executable, "-m", "benchmarks.gpu", f"--one={name}", *["--tiny"] * tiny]
  # Into files: torch's compiling processes would keep a pipe open after the section's end.
  with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
    try:
      done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=out, stderr=err, timeout=seconds
      )
    except subprocess.TimeoutExpired:
      return dict(error=f"not done in {seconds:.0f} s")
    texts = []
    for file in (out, err):
      file.seek(0)
      texts.append(file.read().strip())
  if done.returncode or not texts[0]:
    return dict(error=(texts[1] or texts[0])[-3000:] or f"exit code {done.returncode}")
  return json.loads(texts[0].splitlines()[-1])


def machine() -> dict:
  """The card, the driver and the versions; JAX is asked in a process of its own."""
  script = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind)"
  ask = lambda *command: subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
  platform, _, device = ask(sys.executable, "-c", script).strip().rpartition("\n")[2].partition(" ")
  if not platform:
    sys.exit("JAX finds no device: see its message above")
  driver = None
  if shutil.which("nvidia-smi"):
    driver = ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    driver = driver.strip().partition("\n")[0]
  versions = {"Python": sys.version.split()[0]}
  for name in ("jax", "flax", "torch", "transformers"):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  return dict(device=device, platform=platform, driver=driver, versions=versions)


def table(results: dict) -> str:
  """The results as Markdown."""
  from srl_jax.learner.update import PEAKS

  info, found = results["machine"], results["sections"]
  peak = next((value for name, value in PEAKS.items() if name in info["device"]), None)
  versions = ", ".join(f"{name} {version or 'none'}" for name, version in info["versions"].items())
  command = "python -m benchmarks.gpu" + " --tiny" * results["tiny"]
  lines = [
    f"{info['device']}, driver {info['driver'] or 'none'}, {versions}, {results['date']}; "
    f"`{command}`. Memory in GiB: the most in use, what `plan` would say of the "
    "compiled programs, and their ratio.",
    "",
    "| section | seconds | TFLOP/s | MFU | tokens/s computed | in sequences | measured | estimated "
    "| ratio |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for name, x in found.items():
    if "error" in x:
      last = x["error"].strip().splitlines()[-1][:80].replace("|", "/")
      lines.append(f"| {name} | failed: {last} |")
    elif name != "check":
      lines.append(_line(name + " (not compiled)" * (x.get("compiled") is False), x, peak))
      if "score_seconds" in x:
        scored = {key.removeprefix("score_"): x[key] for key in x if key.startswith("score_")}
        lines.append(_line(f"log-probs of {name}", scored, peak))
  lines += ["", *_ratios(found)]
  if "error" not in found.get("check", {"error": ""}):
    x = found["check"]
    lines += [
      "",
      f"Kernel {x['kernel']}: gradient {x['gradient_error']:.1e} from float32 (plain XLA in "
      f"bfloat16: {x['gradient_error_of_plain_xla']:.1e}); leaks between groups: {x['leak']}.",
    ]
  return "\n".join(lines) + "\n"


def _line(name: str, x: dict, peak: float | None) -> str:
  """A line of the table; peak: the device's FLOP/s, if known."""
  cell = lambda value, form: "" if value is None else format(value, form)
  second = x["seconds"] if isinstance(x["seconds"], float) else statistics.median(x["seconds"])
  tflops, measured, estimated = map(x.get, ("tflops", "peak_bytes", "estimated_bytes"))
  mfu = tflops * 1e12 / peak if tflops and peak else None
  cells = [name, cell(second, ".4g"), cell(tflops, ".1f"), cell(mfu, ".1%")]
  cells += [cell(x.get(key), ",.0f") for key in ("tokens_per_second", "sequence_tokens_per_second")]
  cells += [cell(value and value / 2**30, ".1f") for value in (measured, estimated)]
  cells += [cell(measured / estimated if measured and estimated else None, ".2f")]
  return f"| {' | '.join(cells)} |"


def _ratios(found: dict) -> list[str]:
  """Ratios of sections that did the same work."""
  speed = lambda name: found.get(name, {}).get("sequence_tokens_per_second")
  lines = []

  def compare(name, other, what):
    if speed(name) and speed(other):
      lines.append(f"- {name}: {speed(name) / speed(other):.2f} x {what}")

  for name in found:
    if name.endswith(" shared"):
      compare(name, name.replace(" shared", " naive"), "the update without sharing")
    if name.startswith("update_7b_matmuls"):
      compare(name, name.replace("_matmuls", ""), "the update with remat full")
    if name.startswith("torch"):
      case = name.split()[1]
      for ours in ("update_7b {} naive", "update_7b {} shared", "update_7b_matmuls {} shared"):
        compare(ours.format(case), name, "torch")
  return lines


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sections", default="", help="first words of sections; default: all")
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument(
    "--output",
    help="folder for gpu.json and gpu.md; default: benchmarks, and none with --tiny or --sections",
  )
  parser.add_argument("--one", default="", help=argparse.SUPPRESS)
  given = parser.parse_args()
  todo = sections(given.tiny)
  if given.one:
    run, arguments = todo[given.one]
    print(json.dumps(run(*arguments)))
    return
  wanted = [part for part in given.sections.split(",") if part]
  unknown = set(wanted) - {name.split()[0] for name in todo}
  if unknown:
    sys.exit(f"--sections: {', '.join(unknown)} unknown; there are {', '.join(todo)}")
  folder = given.output
  if folder is None and not given.tiny and not wanted:
    folder = ROOT / "benchmarks"
  started = time.monotonic()
  today = str(datetime.date.today())
  results = dict(machine=machine(), date=today, tiny=given.tiny, sections={})
  if results["machine"]["platform"] == "cpu" and not given.tiny:
    sys.exit("JAX finds no card here, only a CPU; --tiny runs on any machine")
  if folder:
    try:
      pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
      sys.exit(f"--output: {error}")
  with tempfile.TemporaryDirectory() as cache:
    for name in todo:
      if wanted and name.split()[0] not in wanted:
        continue
      begun = time.monotonic()
      left = BUDGET - (begun - started)
      if given.tiny:
        found = run_section(name, True, None, cache)
      elif left < LEAST:
        found = dict(error=f"left out: the {BUDGET} s of a run are used up")
      else:
        found = run_section(name, False, min(LIMIT, left), cache)
      results["sections"][name] = found
      print(f"{name}: {time.monotonic() - begun:.0f} s {found.get('error', '')}", flush=True)
      if folder:
        write(results, pathlib.Path(folder))
  print("\n" + table(results))


def write(results: dict, folder: pathlib.Path) -> None:
  """gpu.json and gpu.md."""
  (folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
  (folder / "gpu.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
  main()
