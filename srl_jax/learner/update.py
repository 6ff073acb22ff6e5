"""The update: micro-batches of packed rows in, new weights out.

`train_step` is one optimiser step: `accumulate` adds each micro-batch's gradient to the sum of
those before, `apply` changes the weights. Every token carries its weight in the loss of the whole
step (rows.Rows.loss_weights_bs), so cutting a batch in another way changes nothing.

What is trained is the whole policy or its adapters (policy.lora.split). Gradients and moments are
of that part alone; the frozen rest is a further argument, not donated and not differentiated.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from srl_jax.errors import UserError
from srl_jax.learner import grpo
from srl_jax.learner.logprobs import token_logprobs
from srl_jax.learner.rows import Rows
from srl_jax.policy import by_layer
from srl_jax.policy.head import in_type
from srl_jax.policy.lora import join, split
from srl_jax.policy.model import Qwen2
from srl_jax.policy.sharding import platform, put_rows


class Loss(NamedTuple):
  """The loss of a run and how it is computed: a static argument of the programs, so hashable.

  Fields:
    algorithm: the config's group `algorithm`, for equation (1); None for supervised fine-tuning.
    temperature, chunk, remat: see logprobs.token_logprobs.
  """

  algorithm: FrozenConfigDict | None
  temperature: float = 1.0
  chunk: int = 512
  remat: str = "none"


class TrainState(NamedTuple):
  """What training changes: steps made so far, the policy, its optimiser's moments (float32).

  Of a policy with adapters the moments are those of the adapters.
  """

  step: int
  model: Qwen2
  moments: optax.OptState


class StepOutput(NamedTuple):
  """The results of an optimiser step besides the weights, on the device; see step_metrics.

  Fields: sums, of every metric over the trained tokens of each micro-batch; gaps, the gap_bs of
  each (of `accumulate`); grad_norm, before clipping.
  """

  sums: list[dict[str, jax.Array]]
  gaps: list[jax.Array]
  grad_norm: jax.Array


# What a config leaves open: batch.logprob_chunk and batch.remat. On a GPU each chunk reads the head
# and adds to its gradient, 2.4 ms of an H100 at Qwen2.5-7B's vocabulary, while the products of 512
# tokens take 2.4 ms and those of 4,096 take 19. On a TPU what "attention" keeps does not fit beside
# a 7B model's rows (v5e-16, v6e-256).
CHUNK, CHUNK_ON_GPUS = 512, 4096
REMAT, REMAT_ON_GPUS = "full", "attention"


def loss_of(config) -> Loss:
  """The loss of a config, on the devices of the mesh that is set."""
  on_gpus = platform() in ("gpu", "cuda")
  chunk, remat = (CHUNK_ON_GPUS, REMAT_ON_GPUS) if on_gpus else (CHUNK, REMAT)
  how = dict(chunk=config.batch.logprob_chunk or chunk, remat=config.batch.remat)
  if how["remat"] == "auto":
    how["remat"] = remat
  if config.method == "sft":
    return Loss(None, **how)
  return Loss(FrozenConfigDict(config.algorithm), config.rollout.temperature, **how)


def batch_loss(model, rows: Rows, loss: Loss):
  """This micro-batch's part of the loss.

  Args:
    model: the policy.
    rows: one micro-batch on the device.
    loss: what to minimise.

  Returns:
    (loss, (sums, logprobs_bs)): sums is {metric: sum over trained tokens}, with the loss itself and
    the number of tokens. The loss weights make the loss a sum already; the mean of any other
    metric is its sum divided by `tokens`.
  """
  # The forward pass; everything below works on one number for each trained token.
  logprobs_bs, entropy_bs = token_logprobs(
    model, rows, temperature=loss.temperature, chunk=loss.chunk, remat=loss.remat
  )
  trained_bs = rows.loss_weights_bs > 0
  inside = lambda x_bs: jnp.where(trained_bs, x_bs, 0.0)
  if loss.algorithm is None:
    value, terms = -(inside(logprobs_bs) * rows.loss_weights_bs).sum(), {}
  else:
    # In the first step the ratio is exp(0) = 1, but its gradient is that of logprobs_bs.
    old_logprobs_bs = rows.old_logprobs_bs
    if old_logprobs_bs is None:
      old_logprobs_bs = jax.lax.stop_gradient(logprobs_bs)
    cap, weights_bs = loss.algorithm.importance_cap, None
    if cap:
      weights_bs = grpo.importance_weights(old_logprobs_bs, rows.sampler_logprobs_bs, cap)
    value, terms = grpo.token_loss(
      logprobs_bs,
      old_logprobs_bs,
      rows.advantages_bs,
      rows.loss_weights_bs,
      weights_bs,
      rows.reference_logprobs_bs,
      algorithm=loss.algorithm,
    )
  terms |= {"logprob": logprobs_bs, "entropy": entropy_bs}
  sums = {name: inside(term_bs).sum() for name, term_bs in terms.items()}
  return value, (sums | {"loss": value, "tokens": trained_bs.sum()}, logprobs_bs)


def uses_copy(trained, loss: Loss) -> bool:
  """Whether the micro-batches of a step use a copy of the weights by layer, in the compute type.

  They do on NVIDIA GPUs, except with remat "full", which is for the least memory.
  """
  return isinstance(trained, Qwen2) and trained.config.by_layer and loss.remat != "full"


def step_weights(trained, loss: Loss):
  """What the micro-batches of a step use in place of the float32 `trained`: it or its copy."""
  return by_layer.cast(trained) if uses_copy(trained, loss) else trained


def _variable(grad, weight):
  # Gradients of a cast weight are those of a float32 variable in its place, so that they are added
  # in float32. Its value is never used.
  return weight if weight.dtype == grad.dtype else jnp.zeros_like(grad)


def _in_place_of(variable, weight):
  return variable if weight.dtype == variable.dtype else in_type(variable, weight)


@functools.partial(jax.jit, static_argnames="loss", donate_argnames="grads")
def accumulate(grads, trained, rows: Rows, loss: Loss, frozen=None):
  """Adds one micro-batch's gradient to `grads`, the float32 sum of those before.

  trained: of step_weights; frozen: of policy.lora.split. Returns (grads, sums, gap_bs): sums as in
  batch_loss, and how far each token's log-prob under the policy that sampled it is from the
  engine's, float32, -1 for padding.
  """

  def loss_of_trained(variables):
    model = join(jax.tree.map(_in_place_of, variables, trained), frozen)
    return batch_loss(model, rows, loss)

  variables = jax.tree.map(_variable, grads, trained)
  value, pull_back, (sums, logprobs_bs) = jax.vjp(loss_of_trained, variables, has_aux=True)
  # The backward pass adds to mutable references of the running sums, which are donated, so a second
  # tree of gradients never exists.
  sums_of_grads = jax.tree.map(jax.new_ref, grads)
  pull_back.with_refs(sums_of_grads)(jnp.ones_like(value))
  sampled_with_bs = logprobs_bs if rows.old_logprobs_bs is None else rows.old_logprobs_bs
  gap_bs = jnp.abs(sampled_with_bs - rows.sampler_logprobs_bs)
  gap_bs = jnp.where(rows.loss_weights_bs > 0, gap_bs, -1.0)
  return jax.tree.map(jax.freeze, sums_of_grads), sums, gap_bs


@functools.partial(jax.jit, static_argnames="tx", donate_argnames=("trained", "moments"))
def apply(tx: optax.GradientTransformation, trained, moments, grads):
  """One optimiser step: (trained, moments, norm of the gradient before clipping)."""
  grads = by_layer.stack(grads)
  updates, moments = tx.update(grads, moments, trained)
  return optax.apply_updates(trained, updates), moments, optax.tree.norm(grads)


@functools.partial(jax.jit, static_argnames="loss")
def logprobs_of(model, rows: Rows, loss: Loss):
  """logprobs_bs of one micro-batch under `model`."""
  how = dict(temperature=loss.temperature, chunk=loss.chunk, remat=loss.remat)
  return token_logprobs(model, rows, **how)[0]


@functools.partial(jax.jit, static_argnames="tx")
def init_moments(tx: optax.GradientTransformation, trained):
  """The optimiser's state, in the layout of what is trained."""
  return tx.init(trained)


@jax.jit
def zeros(trained):
  """Float32 gradients of zeros, to which accumulate adds; trained: of step_weights."""
  return jax.tree.map(lambda weight: jnp.zeros_like(weight, jnp.float32), trained)


def on_device(rows: Rows) -> Rows:
  """Copies this process's rows to its devices: the micro-batch [b, ...], sharded along b."""
  return jax.tree.map(put_rows, rows)


def train_step(
  tx: optax.GradientTransformation,
  state: TrainState,
  micro_batches: Sequence[Rows],
  loss: Loss,
) -> tuple[TrainState, StepOutput]:
  """Dispatches one optimiser step over micro-batches and does not wait for it.

  Args:
    tx: the optimiser.
    state: donated; use the returned one. Its step is left to the loop, because a batch may make
      several optimiser steps.
    micro_batches: rows of one batch, on the device (on_device).
    loss: what to minimise.
  """
  # Gradient accumulation: every call adds to the same donated buffers.
  trained, frozen = split(state.model)
  weights = step_weights(trained, loss)
  grads, sums, gaps = zeros(weights), [], []
  for rows in micro_batches:
    grads, sums_of_rows, gap_bs = accumulate(grads, weights, rows, loss=loss, frozen=frozen)
    sums.append(sums_of_rows)
    gaps.append(gap_bs)
  del weights  # a copy's memory is free for the optimiser's step
  trained, moments, norm = apply(tx, trained, state.moments, grads)
  model = join(trained, frozen)
  return TrainState(state.step, model, moments), StepOutput(sums, gaps, norm)


def step_metrics(output: StepOutput, step: int) -> dict[str, float]:
  """Waits for a step; its metrics as floats, those of tokens as means over the trained ones.

  Raises UserError, naming `step`, when the loss or the gradient is not finite.
  """
  sums, norm = jax.device_get((output.sums, output.grad_norm))
  totals = Counter()
  for part in sums:
    totals.update({name: float(value) for name, value in part.items()})
  metrics = {"loss": totals.pop("loss"), "grad_norm": float(norm)}
  if not np.isfinite(list(metrics.values())).all():
    raise UserError(
      f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; the last"
      " checkpoint is untouched. Lower optimizer.lr or look at the data of this step"
    )
  # Sums over all micro-batches / all trained tokens; only the loss was weighted before.
  tokens = max(totals.pop("tokens"), 1.0)
  return metrics | {name: total / tokens for name, total in totals.items()}


# ---------------------------------------------------------------------------------- its work

# Dense bf16 peak of a device, FLOP/s, from the makers' data sheets; by a part of its device_kind.
PEAKS = {
  "H100": 989e12,
  "H200": 989e12,
  "A100": 312e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v6": 918e12,
}


def update_flops(
  config, groups: Iterable[tuple[int, Sequence[int]]], frozen: bool = False
) -> float:
  """FLOPs of an update, forward and backward, that the maths needs; recomputation is not counted.

  6 x matmul weights x real tokens, a prompt counted once for its group; the output head on response
  tokens only; causal attention at half.

  Args:
    config: the policy's ModelConfig.
    groups: (tokens of the prompt, tokens of each response).
    frozen: whether the weights have no gradients (LoRA): 4 x instead of 6 x. What the adapters
      compute besides is not counted, at rank 16 less than a hundredth.
  """
  each = 4 if frozen else 6
  d, h = config.hidden_size, config.head_dim
  n, k, f = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
  layer = d * h * (2 * n + 2 * k) + 3 * d * f  # weights of q, o (n heads), k, v (k heads), the MLP
  flops = 0.0
  for prompt, lengths in groups:
    # A multiply-add is 2 FLOPs, once forward and twice backward: 6 for each weight and token. The
    # two matmuls of attention (scores, values) make it 12 n h for each pair of tokens.
    pairs, responses = prompt**2 / 2, 0  # pairs of tokens in causal attention
    for length in lengths:
      pairs += length * prompt + length**2 / 2
      responses += length
    flops += config.num_hidden_layers * (each * layer * (prompt + responses) + 12 * n * h * pairs)
    flops += each * d * config.vocab_size * responses
  return flops
