"""Our update and the built-in sampler."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from benchmarks.gpu.cases import CASES, SAMPLES, SHAPES, Case, timed
from benchmarks.gpu.profile import profile
from benchmarks.shapes import NoText
from srl_jax.config import defaults
from srl_jax.learner import packing
from srl_jax.learner import update as learner
from srl_jax.learner.programs import program_bytes
from srl_jax.learner.rows import PackedGroup, Response
from srl_jax.policy.model import ModelConfig, init
from srl_jax.policy.sharding import platform
from srl_jax.rollout.engine import Prompt, SamplingParams
from srl_jax.rollout.sampler import Sampler


def model_config(shape: str):
  """The architecture, computing in bfloat16, or on a CPU, which has none, in float32."""
  dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return ModelConfig(**SHAPES[shape], dtype=dtype).on_platform(platform())


def make_groups(case: Case, vocabulary: int, shared: bool):
  """Random groups; not shared: each response is a separate group, with a copy of the prompt."""
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


def flops_of(config, groups) -> float:
  """learner.update.update_flops of packed groups."""
  lengths = lambda group: [len(response.token_ids) for response in group.responses]
  return learner.update_flops(config, [(len(g.prompt_ids), lengths(g)) for g in groups])


def estimated_bytes(tx, state: learner.TrainState, packed, loss) -> int:
  """The most bytes that an update of these micro-batches has in use, from its compiled programs.

  The persistent cache has the programs already if the update has run.
  """
  model, moments = state.model, state.moments
  weights = jax.eval_shape(lambda model: learner.step_weights(model, loss), model)
  grads = jax.eval_shape(learner.zeros, weights)
  # `apply` has the moments among its arguments; the other programs run beside them, and
  # `accumulate` beside the float32 layers too where it uses a copy of them.
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  masters = size(model.layers) if learner.uses_copy(model, loss) else 0
  most = program_bytes(learner.apply.lower(tx, model, moments, grads).compile())
  for rows in packed:
    for beside, program in (
      (masters, learner.accumulate.lower(grads, weights, rows, loss)),
      (0, learner.logprobs_of.lower(model, rows, loss)),
    ):
      most = max(most, size(moments) + beside + program_bytes(program.compile()))
  return most


def update(shape: str, case: str, sharing: str, remat: str, chunk: int) -> dict:
  """Our update, float32 masters and bfloat16 compute: seconds, MFU, memory.

  Rows are laid out for kernels on a CPU too.
  """
  given = CASES[case]
  config = model_config(shape)
  # Shared: a prompt once for its 8 responses; naive: a copy for each, as other trainers pack.
  groups = make_groups(given, config.vocab_size, sharing == "shared")
  loss = learner.Loss(FrozenConfigDict(defaults().algorithm), chunk=chunk, remat=remat)
  # One row of as many tokens as the case has, so that all cases have little padding.
  budget = given.shared if sharing == "shared" else given.naive
  rows = packing.pack(groups, tokens_per_device=budget, shards=1, layout="lines")
  packed = [learner.on_device(part) for part in rows]
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-7))
  model = init(config, 0)
  state = learner.TrainState(0, model, learner.init_moments(tx, model))
  del model  # a second reference would keep the donated weights alive

  def step():
    nonlocal state
    state, output = learner.train_step(tx, state, packed, loss)
    learner.step_metrics(output, 1)  # waits for the step

  # The log-prob pass of the reference policy (algorithm.kl) or of k > 1 steps a batch.
  def score():
    jax.block_until_ready([learner.logprobs_of(state.model, part, loss) for part in packed])

  seconds, score_seconds, kinds = timed(step), timed(score), profile(step)
  stats = jax.local_devices()[0].memory_stats() or {}
  tokens = sum(group.size() for group in groups)
  second, score_second = statistics.median(seconds), statistics.median(score_seconds)
  flops = flops_of(config, groups)
  # As trainers count that compute every copy of a prompt.
  copied = flops_of(config, make_groups(given, config.vocab_size, shared=False))
  return dict(
    seconds=seconds,
    micro_batches=len(packed),
    real_share=tokens / sum(part.tokens_bt.size for part in rows),
    tokens_per_second=tokens / second,
    sequence_tokens_per_second=given.groups * SAMPLES * (given.prompt + given.response) / second,
    flops=flops,
    tflops=flops / second / 1e12,
    copied_tflops=copied / second / 1e12,
    score_seconds=score_seconds,
    score_tokens_per_second=tokens / score_second,
    score_tflops=flops / 3 / score_second / 1e12,  # forward alone: a third of the FLOPs
    kinds=kinds,
    peak_bytes=stats.get("peak_bytes_in_use"),
    estimated_bytes=estimated_bytes(tx, state, packed, loss),
  )


def device() -> dict:
  """The device that the sections run on."""
  found = jax.devices()[0]
  return dict(device=found.device_kind, platform=found.platform)


def ceiling(size: int) -> dict:
  """A plain bfloat16 matmul of size^3: the rate that this card reaches today."""
  a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
  product = jax.jit(lambda a, b: a @ b)
  count = 20  # dispatched together, so that the host's overhead does not count

  def run():
    for _ in range(count):
      c = product(a, b)
    c.block_until_ready()

  second = statistics.median(timed(run)) / count
  return dict(seconds=second, tflops=2 * size**3 / second / 1e12)


def sampler(shape: str, responses: int, prompt: int, tokens: int) -> dict:
  """The built-in engine: tokens per second, prefill included."""
  config = model_config(shape)
  engine = Sampler(NoText(), [], responses)  # no stop ids: all responses have `tokens` tokens
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
