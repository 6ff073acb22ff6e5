"""From compiled programs to a forecast: does it fit, how fast is a step, what to change.

Seconds are forecasts from assumed rates, not measurements; every report has the rates.
"""

import dataclasses
import math

import jax

from srl_jax.learner.update import PEAKS, loss_of, update_flops
from srl_jax.planning.programs import Program, State, device_bytes
from srl_jax.planning.topologies import GIB, Topology
from srl_jax.policy.lora import split
from srl_jax.policy.model import ModelConfig, abstract
from srl_jax.policy.sharding import check_mesh

# Achieved shares of nominal rates. COMPUTE: of the dense bf16 peak, recomputation counted; MaxText
# reports 46-49 % MFU for Llama2-7B.
COMPUTE = 0.55
LINK = 0.8  # of the nominal rate of links inside a node or slice
MEMORY = 0.8  # of the nominal rate of a chip's memory
PACKED = 0.85  # real tokens among the packed ones
# CPU seconds a token of the step of process 0, which works most: its plan of the micro-batches, its
# part of what all hosts share, and the store that it serves, for each host.
HOST_FIXED, HOST_SHARED, HOST_STORE = 0.101e-6, 0.467e-6, 0.84e-9


@dataclasses.dataclass(frozen=True)
class Work:
  """The data of a step: prompts, samples of each, mean tokens of a prompt and of a response."""

  prompts: int
  samples: int
  prompt_tokens: int
  response_tokens: int

  def tokens(self) -> int:
    """Tokens of a step, each prompt counted once."""
    return self.prompts * (self.prompt_tokens + self.samples * self.response_tokens)

  def flops(self, config: ModelConfig, frozen: bool = False) -> float:
    """FLOPs of the update by the formula of update.update_flops."""
    group = self.prompt_tokens, [self.response_tokens] * self.samples
    return self.prompts * update_flops(config, [group], frozen)


def work_of(config, prompt_tokens: int, response_tokens: int) -> Work:
  """The work of a step of `config`, no length above the config's limits."""
  return Work(
    prompts=config.batch.prompts,
    samples=1 if config.method == "sft" else config.rollout.samples,
    prompt_tokens=min(prompt_tokens, config.data.max_prompt_tokens),
    response_tokens=min(response_tokens, config.rollout.max_tokens),
  )


def peak_flops(kind: str) -> float:
  """Dense bfloat16 FLOP/s of a device of a kind, by PEAKS."""
  return next(peak for name, peak in PEAKS.items() if name in kind)


def rates(topology: Topology, peak: float) -> dict[str, float]:
  """The assumed rates: FLOP/s, bytes/s, and the share of real tokens among packed ones."""
  return {
    "compute": COMPUTE * peak,
    "peak": peak,
    "memory": MEMORY * topology.chip.hbm,
    "link": LINK * topology.chip.link,
    "packed": PACKED,
  }


def link_seconds(
  model_config: ModelConfig, topology: Topology, mesh: dict[str, int], frozen: bool = False
) -> float:
  """Seconds of a micro-batch's collectives inside a node or slice, as ring algorithms take them.

  fsdp gathers every bfloat16 weight for the forward pass and again for the backward pass, and
  reduce-scatters its gradient, which frozen weights do not have; each device sends (n - 1) / n of
  the array. Gradients that are reduced between nodes (data) are not counted: they are a small part
  of these.
  """
  weights = sum(leaf.size for leaf in jax.tree.leaves(abstract(model_config)))
  sent = (2 if frozen else 3) * 2 * weights * (mesh["fsdp"] - 1) / mesh["fsdp"]
  return sent / mesh["tensor"] / (LINK * topology.chip.link)


def host_seconds(work: Work, hosts: int) -> float:
  """CPU seconds of the busiest host between sampling and the update, without rewards.

  The fit of process 0 in benchmarks/hosts.md.
  """
  return work.tokens() * (HOST_FIXED + HOST_SHARED / hosts + HOST_STORE * hosts)


def recomputed(remat: str, model_config: ModelConfig) -> float:
  """The part of the forward pass that the backward pass computes again, by policy.model.REMAT."""
  if remat != "attention":
    return float(remat == "full")
  sizes = model_config.sizes()
  d, h, n, k, f = (sizes[letter] for letter in "dhnkf")
  gate_and_up = 2 * d * f
  return gate_and_up / (gate_and_up + d * f + d * h * (2 * n + 2 * k))


def step(
  config,
  model_config: ModelConfig,
  topology: Topology,
  work: Work,
  mesh: dict[str, int],
  programs: dict[str, Program],
  peak: float,
) -> dict[str, float]:
  """Forecast of the update of one optimiser step.

  Args:
    mesh: {axis: size}; rows are sharded over data and fsdp.
    programs: {name: Program}.
    peak: FLOP/s of a chip.

  Returns {micro_batches, flops, compute_s, link_s (of all micro-batches), apply_s, score_s,
  step_s, mfu, tokens, tokens_in_flight}; of compute and links the longer one counts, as they
  overlap. Padding at the end of the last micro-batch is computed like tokens.
  """
  slots = mesh["data"] * mesh["fsdp"] * config.batch.tokens_per_device
  steps = config.algorithm.steps_per_batch
  # Each optimiser step takes whole micro-batches; a share PACKED of their places has a token.
  batches = steps * math.ceil(work.tokens() / steps / (PACKED * slots))
  frozen = config.lora.rank > 0
  flops = work.flops(model_config, frozen)
  padded = flops * batches * slots / work.tokens()  # padding costs as much as tokens
  # A forward pass is a third of the FLOPs of the formula, half of them where weights are frozen.
  share = 1 / 2 if frozen else 1 / 3
  done = 1 + share * recomputed(loss_of(config).remat, model_config)
  compute = padded * done / (topology.devices * peak * COMPUTE)
  links = batches * link_seconds(model_config, topology, mesh, frozen)
  # The optimiser reads weights, moments and gradients and writes as many bytes.
  apply_s = 2 * programs["apply"].arguments / (MEMORY * topology.chip.hbm)
  # Several steps on a batch need its old log-probs, the KL term those of the reference policy: a
  # forward pass each.
  passes = int(steps > 1) + int(config.algorithm.kl > 0)
  once = links / (2 if frozen else 3)
  score = passes * max(padded * share / (topology.devices * peak * COMPUTE), once)
  seconds = max(compute, links) + apply_s * steps + score
  return {
    "micro_batches": batches,
    "tokens": work.tokens(),
    "tokens_in_flight": slots,
    "flops": flops,
    "compute_s": compute,
    "link_s": links,
    "apply_s": apply_s,
    "score_s": score,
    "step_s": seconds,
    "mfu": flops / (seconds * topology.devices * peak),
  }


def memory(state: State, programs: dict[str, Program], topology: Topology, sampler: int) -> dict:
  """Bytes a device: {parameters, moments, gradients, sampler (what the built-in engine keeps),
  programs: {name: ...}, peak, limit, fits}.
  """
  # A program's total includes what the run keeps beside it, so the largest one is the peak.
  peak = max((program.total() for program in programs.values()), default=0)
  return {
    "parameters": device_bytes(state.model),
    "gradients": device_bytes(split(state.model)[0]),
    "moments": device_bytes(state.moments),
    "sampler": sampler,
    "programs": {n: p._asdict() | {"total": p.total()} for n, p in programs.items()},
    "peak": peak,
    "limit": topology.chip.memory,
    "fits": peak <= topology.chip.memory,
  }


def advice(config, found: dict, mesh: dict[str, int], sizes: dict[str, int]) -> list[str]:
  """Lines of the config to change when `found` (of memory) does not fit, the likeliest first.

  sizes: ModelConfig.sizes(); they limit the mesh.
  """
  over = found["peak"] - found["limit"]
  if over <= 0:
    return []
  lines = []
  if found["sampler"]:
    lines.append(
      f"rollout.engine = 'vllm' (now 'builtin', which keeps {found['sampler'] / GIB:.1f} GiB of "
      "copied weights on each device)"
    )
  # These do not shrink with the batch.
  kept = found["parameters"] + found["moments"] + found["gradients"]
  limit = config.data.max_prompt_tokens + config.rollout.max_tokens
  room = config.batch.tokens_per_device
  # Smaller micro-batches help only where weights, moments and gradients leave room for them.
  if kept < 0.8 * found["limit"]:
    loss = loss_of(config)
    if loss.remat in ("none", "matmuls"):
      lines.append(f"batch.remat = 'attention' (now {loss.remat!r})")
    if loss.remat != "full":
      lines.append(f"batch.remat = 'full' (now {loss.remat!r})")
    if room > limit:
      lines.append(f"batch.tokens_per_device = {max(limit, room // 2)} (now {room})")
    else:
      lines.append(
        f"data.max_prompt_tokens and rollout.max_tokens lower (now {limit} together), and "
        f"batch.tokens_per_device with them (now {room})"
      )
    if loss.chunk > 128:
      lines.append(f"batch.logprob_chunk = 128 (now {loss.chunk})")
  # Twice as many devices along fsdp, until what they keep takes at most 60 % of each.
  parts, spec = mesh["fsdp"], None
  while not spec or kept * mesh["fsdp"] / parts > 0.6 * found["limit"]:
    larger = mesh | {"fsdp": 2 * parts}
    twice = ",".join(f"{axis}={size}" for axis, size in larger.items())
    try:
      check_mesh(twice, sizes)
    except ValueError:  # a size that this many devices do not divide, more do not divide either
      break
    parts, spec = 2 * parts, twice
  if spec:
    lines.append(
      f"mesh = {spec!r}, more devices: weights, moments and gradients take {kept / GIB:.1f} GiB of "
      f"{found['limit'] / GIB:.1f} on each now, {kept * mesh['fsdp'] / parts / GIB:.1f} then"
    )
  return lines or [
    f"model = a smaller one: fsdp={2 * parts} does not divide hidden_size {sizes['d']} of this one"
  ]
