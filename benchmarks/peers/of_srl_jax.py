"""Measures srl_jax: learner.update.train_step and rollout.sampler.Sampler."""

import time

import jax
from ml_collections import FrozenConfigDict

from benchmarks.peers import cases
from benchmarks.peers.worker import serve
from benchmarks.shapes import NoText
from srl_jax.config import defaults
from srl_jax.learner import optimizer, packing, update
from srl_jax.learner.batch import weigh
from srl_jax.learner.rows import PackedGroup, Response
from srl_jax.policy.model import ModelConfig, init
from srl_jax.policy.sharding import make_mesh
from srl_jax.policy.weights import load_hf, save_hf
from srl_jax.rollout.engine import Prompt, SamplingParams
from srl_jax.rollout.sampler import Sampler


def prepare_model(order):
  """Writes the model that all peers load: random weights of a shape."""
  config = ModelConfig(**cases.SHAPES[order["shape"]])
  save_hf(config, init(config, seed=0), order["model"])


def prepare_update(order):
  """One optimiser step on a group; sharing the prompt or with a copy of it for each response."""
  _, model = load_hf(order["model"])
  settings = defaults().optimizer
  settings.lr, settings.grad_norm = cases.LEARNING_RATE, cases.GRAD_NORM
  tx = optimizer.make(settings, steps=1000)
  state = update.TrainState(0, model, update.init_moments(tx, model))
  algorithm = defaults().algorithm.unlock()
  algorithm.update(clip_low=cases.CLIP, clip_high=cases.CLIP, importance_cap=0.0)
  # Only attention is recomputed, as in the fused kernels of the others.
  loss = update.Loss(FrozenConfigDict(algorithm), remat="matmuls")

  def do(turn):
    nonlocal state
    prompt, responses, advantages = cases.group(order, turn)
    responses = [Response(ids, None, a) for ids, a in zip(responses, advantages)]
    if order["share"]:
      groups = [PackedGroup(prompt, responses)]
    else:
      groups = [PackedGroup(prompt, [response]) for response in responses]
    rows = packing.pack(
      weigh(groups, "sequence", order["response"]),
      tokens_per_device=order["samples"] * (order["prompt"] + order["response"]),
      shards=1,
      layout=state.model.config.layout,
    )
    # Packing is not timed: the others get padded tensors too.
    batches = [update.on_device(part) for part in rows]
    begun = time.perf_counter()
    state, output = update.train_step(tx, state, batches, loss)
    jax.block_until_ready(state.model)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "grad_norm": update.step_metrics(output, 1)["grad_norm"]}

  return do


def prepare_sample(order):
  _, model = load_hf(order["model"])
  engine = Sampler(NoText(), [], width=order["prompts"] * order["samples"])
  engine.load_weights(model, 0)

  def do(turn):
    prompts = [
      Prompt(f"{turn}-{i}", tuple(cases.prompt(order, turn, i))) for i in range(order["prompts"])
    ]
    begun = time.perf_counter()
    list(engine.sample(prompts, order["samples"], SamplingParams(order["response"])))
    return {"seconds": time.perf_counter() - begun}

  return do


if __name__ == "__main__":
  with jax.set_mesh(make_mesh("data=1,fsdp=1,tensor=1")):
    serve({"model": prepare_model, "update": prepare_update, "sample": prepare_sample})
