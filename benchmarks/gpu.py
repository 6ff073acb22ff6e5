"""What one NVIDIA card does: the update, the sampler, and the same update in torch.

  python -m benchmarks.gpu                      all sections, under 8 minutes on one H100
  python -m benchmarks.gpu --sections=check,update_7b
  python -m benchmarks.gpu --tiny               seconds, on any machine

Needs jax, flax, optax, orbax, torch and transformers, nothing else and no network. Every section is
a process of its own, so that its peak of memory is its own; the results go to --output as JSON and
as a Markdown table. Weights are random: speed does not depend on them.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
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
REPEATS = 5


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

  from srl_jax.learner.packing import PackedGroup, Response

  rng = np.random.default_rng(0)
  ids = lambda count: rng.integers(0, vocabulary, count).tolist()
  logprobs = (-np.ones(case.response)).tolist()
  groups = []
  for _ in range(case.groups):
    prompt = ids(case.prompt)
    responses = [
      Response(ids(case.response), logprobs, float(rng.normal())) for _ in range(SAMPLES)
    ]
    parts = [responses] if shared else [[response] for response in responses]
    groups += [PackedGroup(prompt, part) for part in parts]
  return groups


def flops_of(config, groups) -> float:
  """learner.metrics.update_flops of packed groups."""
  from types import SimpleNamespace

  from srl_jax.learner.metrics import update_flops

  as_sampled = [
    SimpleNamespace(
      prompt=SimpleNamespace(token_ids=group.prompt_ids), rollouts=list(group.responses)
    )
    for group in groups
  ]
  return update_flops(config, as_sampled)


def timed(run, repeats=REPEATS) -> list[float]:
  """Seconds of each of `repeats` calls, after one to compile."""
  run()
  seconds = []
  for _ in range(repeats):
    begun = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - begun)
  return seconds


def peak_bytes() -> int | None:
  import jax

  stats = jax.local_devices()[0].memory_stats()
  return stats.get("peak_bytes_in_use") if stats else None


def compiled_bytes(compiled) -> int:
  """Memory of a program by the compiler: arguments, results that are no arguments, temporaries."""
  m = compiled.memory_analysis()
  sizes = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
  return sizes + m.temp_size_in_bytes


def update(shape: str, case: str, sharing: str, remat: str, chunk: int, layers: int = 0) -> dict:
  """Our update, float32 masters and bfloat16 compute: seconds, MFU, memory."""
  import jax
  import optax

  from srl_jax.learner import packing
  from srl_jax.learner import update as learner
  from srl_jax.policy.model import init

  given = CASES[case]
  config = model_config(shape)
  if layers:
    config = dataclasses.replace(config, num_hidden_layers=layers)
  groups = make_groups(given, config.vocab_size, sharing == "shared")
  loss = learner.Loss(chunk=chunk, remat=remat)
  # Every case reads the same kind of rows: as many tokens as the case says, in whole groups.
  rows = packing.pack(
    groups,
    tokens_per_device=given.shared if sharing == "shared" else given.naive,
    shards=1,
    aggregate="sequence",
    max_tokens=given.response,
    lines=config.attention != "xla",
  )
  packed = [learner.on_device(part) for part in rows]
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-7))
  model = init(config, 0)
  state = [model, learner.init_moments(tx, model)]
  del model

  def step():
    state[0], state[1], metrics, _ = learner.train_step(tx, *state, packed, loss)
    return metrics

  seconds = timed(step)
  tokens = sum(group.size() for group in groups)
  second = statistics.median(seconds)
  found = dict(
    seconds=seconds,
    micro_batches=len(packed),
    shapes=sorted({str(part.tokens_bt.shape + part.lines_bml.shape[1:]) for part in rows})
    if rows[0].lines_bml is not None
    else [str(rows[0].tokens_bt.shape)],
    real_share=tokens / sum(part.tokens_bt.size for part in rows),
    tokens_per_second=tokens / second,
    sequence_tokens_per_second=given.groups * SAMPLES * (given.prompt + given.response) / second,
    flops=flops_of(config, groups),
    tflops=flops_of(config, groups) / second / 1e12,
    peak_bytes=peak_bytes(),
  )
  # The log-prob pass of the reference policy (algorithm.kl) or of k > 1 steps a batch.
  score = timed(lambda: [jax.block_until_ready(learner.score(state[0], p, loss)) for p in packed])
  found["score_seconds"] = score
  found["score_tflops"] = found["flops"] / 3 / statistics.median(score) / 1e12
  grads = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state[0])
  names = ["loss", "tokens", "entropy", "logprob", "ratio", "clip_fraction", "importance_weight"]
  totals = {name: jax.ShapeDtypeStruct((), "float32") for name in names}
  compiled = learner.accumulate.lower(
    grads, totals, state[0], packed[0], None, None, loss
  ).compile()
  # While gradients are summed the moments lie beside them.
  moments = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state[1]))
  found["compiled_bytes"] = compiled_bytes(compiled) + moments
  return found


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
  from srl_jax.policy.model import init

  rng = np.random.default_rng(1)
  ids = lambda count: rng.integers(0, 512, count).tolist()

  def group(prompt, lengths):
    responses = [packing.Response(ids(n), [-6.0] * n, float(rng.normal())) for n in lengths]
    return packing.PackedGroup(ids(prompt), responses)

  groups = [group(97, [30, 61, 5]), group(12, [100, 3]), group(200, [17, 40, 90]), group(60, [9])]
  config = dataclasses.replace(model_config("tiny"), head_dim=64)
  how = dict(tokens_per_device=1024, shards=1, aggregate="sequence", max_tokens=128)
  loss = learner.Loss(chunk=128, importance_cap=0.0)

  def gradient(config, groups, lines):
    model = init(dataclasses.replace(config, attention="xla"), 0)
    model = jax.tree.map(lambda x: x * 2, model)  # far from uniform
    model.config = model.layers.config = config
    (rows,) = packing.pack(groups, lines=True, **how)
    if not lines:
      rows = packing.Rows(*rows[:9])
    run = jax.jit(jax.grad(learner.batch_loss, has_aux=True), static_argnums=4)
    grad, (_, logprobs) = run(model, learner.on_device(rows), None, None, loss)
    kept = rows.shares_bs > 0
    segments = np.take_along_axis(rows.segments_bt, rows.sources_bs, axis=1)
    flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(grad)])
    return flat, np.asarray(logprobs)[kept], segments[kept]

  exact = gradient(dataclasses.replace(config, dtype="float32", attention="xla"), groups, False)
  plain = gradient(dataclasses.replace(config, attention="xla"), groups, False)
  lines = config.attention != "xla"
  ours = gradient(config, groups, lines)
  error = lambda found: float(np.linalg.norm(found - exact[0]) / np.linalg.norm(exact[0]))
  # The row's groups stand from the longest to the shortest: change the second's responses.
  changed = list(groups)
  changed[1] = group(12, [100, 3])
  other = gradient(config, changed, lines)
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
  seconds = timed(lambda: list(engine.sample(prompts, SAMPLES, params)), 3)
  second = statistics.median(seconds)
  return dict(seconds=seconds, tokens_per_second=responses * tokens / second)


# ---------------------------------------------------------------------------------- torch


def torch_update(shape: str, case: str, rows: int, compiled: bool) -> dict:
  """The same update in torch and transformers: SDPA, checkpointed layers, fused AdamW, autocast.

  One response a row with its own prompt, as the published trainers do it; logits of response tokens
  only, in float32; `rows` sequences a micro-batch.
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
  if compiled:
    for layer in model.model.layers:
      layer.compile()
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

  seconds = timed(step, 3)
  return dict(
    seconds=seconds,
    sequence_tokens_per_second=count * (p + r) / statistics.median(seconds),
    peak_bytes=torch.cuda.max_memory_allocated() if cuda else None,
    torch=torch.__version__,
    transformers=transformers.__version__,
  )


# ---------------------------------------------------------------------------------- sections


def sections(tiny: bool) -> dict:
  """{name: (function, arguments)}; a name's first word is its section."""
  if tiny:
    wide, small, cases, found = "tiny", "tiny", ["tiny"], {}
    found["ceiling"] = (ceiling, (256,))
  else:
    wide, small, cases, found = "7B, 8 layers", "1.5B", ["1500/1000", "2000/500"], {}
    found["ceiling"] = (ceiling, (8192,))
  found["check"] = (check, ())
  chunk = 2048 if not tiny else 64
  for case in cases:
    for sharing in ("shared", "naive"):
      found[f"update_7b {case} {sharing}"] = (update, (wide, case, sharing, "full", chunk))
  found[f"update_1.5b {cases[0]} shared"] = (update, (small, cases[0], "shared", "full", chunk))
  found[f"torch {cases[0]}"] = (torch_update, (wide, cases[0], 8, not tiny))
  for responses in (64, 256) if not tiny else (16,):
    lengths = (512, 256) if not tiny else (16, 8)
    found[f"sampler {responses}"] = (sampler, (small, responses, *lengths))
  return found


def run_section(name: str, tiny: bool) -> dict:
  """The section's result, from a process of its own; {"error": its last lines} if it fails."""
  environment = dict(os.environ, XLA_PYTHON_CLIENT_MEM_FRACTION="0.95", PYTHONPATH=str(ROOT))
  command = [sys.executable, "-m", "benchmarks.gpu", f"--one={name}", *["--tiny"] * tiny]
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  if done.returncode:
    return dict(error=(done.stderr or done.stdout)[-3000:])
  return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict:
  """The card, the driver and the versions, asked for in a process of its own."""
  script = (
    "import jax, json; d = jax.devices()[0];"
    "print(json.dumps(dict(device=d.device_kind, platform=d.platform, jax=jax.__version__)))"
  )
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def table(results: dict) -> str:
  """The results as Markdown."""
  from srl_jax.learner.metrics import PEAKS

  info, found = results["machine"], results["sections"]
  peak = next((value for name, value in PEAKS.items() if name in info["device"]), None)
  lines = [
    f"{info['device']}, JAX {info['jax']}, {results['date']}; `python -m benchmarks.gpu`.",
    "",
    "| section | seconds | TFLOP/s | MFU | tokens/s computed | in sequences | GiB | compiled |",
    "|---|---|---|---|---|---|---|---|",
  ]
  cell = lambda value, form: "" if value is None else format(value, form)
  gib = lambda value: None if value is None else value / 2**30
  for name, x in found.items():
    if "error" in x:
      lines.append(f"| {name} | failed: {x['error'].strip().splitlines()[-1][:80]} |")
      continue
    if name == "check":
      continue
    second = x["seconds"] if isinstance(x["seconds"], float) else statistics.median(x["seconds"])
    tflops = x.get("tflops")
    mfu = tflops * 1e12 / peak if tflops and peak else None
    cells = [name, cell(second, ".4g"), cell(tflops, ".1f"), cell(mfu, ".1%")]
    cells += [
      cell(x.get(key), ",.0f") for key in ("tokens_per_second", "sequence_tokens_per_second")
    ]
    cells += [cell(gib(x.get(key)), ".1f") for key in ("peak_bytes", "compiled_bytes")]
    lines.append(f"| {' | '.join(cells)} |")
  lines += ["", *_ratios(found)]
  if "error" not in found.get("check", {"error": ""}):
    x = found["check"]
    lines += [
      "",
      f"Kernel {x['kernel']}: gradient {x['gradient_error']:.1e} from float32 (plain XLA in "
      f"bfloat16: {x['gradient_error_of_plain_xla']:.1e}); leaks between groups: {x['leak']}.",
    ]
  return "\n".join(lines) + "\n"


def _ratios(found: dict) -> list[str]:
  """Ratios of sections that did the same work."""
  speed = lambda name: found.get(name, {}).get("sequence_tokens_per_second")
  lines = []
  for name in found:
    if name.endswith(" shared"):
      naive = speed(name.replace(" shared", " naive"))
      if naive and speed(name):
        lines.append(f"- {name}: {speed(name) / naive:.2f} x the update without sharing")
    if name.startswith("torch"):
      case = name.split()[1]
      for sharing in ("naive", "shared"):
        ours = speed(f"update_7b {case} {sharing}")
        if ours and speed(name):
          lines.append(f"- update_7b {case} {sharing}: {ours / speed(name):.2f} x torch")
  return lines


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--sections", default="", help="first words of sections; default: all")
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument("--output", default="", help="folder for gpu.json and gpu.md")
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
  results = dict(machine=machine(), date=str(datetime.date.today()), sections={})
  for name in todo:
    if wanted and name.split()[0] not in wanted:
      continue
    begun = time.perf_counter()
    results["sections"][name] = run_section(name, given.tiny)
    note = results["sections"][name].get("error", "")
    print(f"{name}: {time.perf_counter() - begun:.0f} s {note}", flush=True)
    if given.output:
      folder = pathlib.Path(given.output)
      folder.mkdir(parents=True, exist_ok=True)
      (folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
      (folder / "gpu.md").write_text(table(results), encoding="utf-8")
  print("\n" + table(results))


if __name__ == "__main__":
  main()
