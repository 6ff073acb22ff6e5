"""Measures tunix: its GRPO update and its "vanilla" sampler, in JAX."""

import time

import jax
import jax.numpy as jnp
import optax
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params
from tunix.rl import function_registry
from tunix.rl.grpo.grpo_learner import GRPOConfig, TrainExample
from tunix.rl.trainer import Trainer
from tunix.sft.peft_trainer import TrainingConfig

from benchmarks.peers import cases
from benchmarks.peers.worker import serve

PAD, EOS = 0, 2


def load(order, remat: bool):
  """(config, model) of an order, in tunix's terms."""
  given = cases.SHAPES[order["shape"]]
  config = qwen2.ModelConfig(
    num_layers=given["num_hidden_layers"],
    vocab_size=given["vocab_size"],
    embed_dim=given["hidden_size"],
    hidden_dim=given["intermediate_size"],
    num_heads=given["num_attention_heads"],
    head_dim=given["head_dim"],
    num_kv_heads=given["num_key_value_heads"],
    rope_theta=given["rope_theta"],
    norm_eps=given["rms_norm_eps"],
    use_tied_embedding=given["tie_word_embeddings"],
    remat_config=qwen2.RematConfig.DECODER if remat else qwen2.RematConfig.NONE,
  )
  return config, params.create_model_from_safe_tensors(order["model"], config, dtype=jnp.float32)


def _remembers_norm():
  """An optax transformation that keeps the norm of the incoming gradient in its state."""
  return optax.GradientTransformation(
    lambda params: jnp.zeros(()),
    lambda grads, state, params=None: (grads, optax.global_norm(grads)),
  )


def prepare_update(order):
  """tunix's own trainer with its GRPO loss, as its GRPOLearner wires them.

  The responses are split into order["micro_batches"] parts; tunix accumulates their gradients.
  """
  _, model = load(order, order["remat"])
  settings = GRPOConfig(num_generations=order["samples"], beta=0.0, epsilon=cases.CLIP)
  settings.temperature = 1.0
  parts = order["micro_batches"]
  tx = optax.chain(
    _remembers_norm(),
    optax.clip_by_global_norm(cases.GRAD_NORM),
    optax.adamw(cases.LEARNING_RATE, weight_decay=0.0),
  )
  accumulate = parts if parts > 1 else None
  training = TrainingConfig(eval_every_n_steps=10**6, gradient_accumulation_steps=accumulate)
  trainer = Trainer(model, tx, training, dict)
  grpo = function_registry.get_policy_loss_fn(settings.policy_loss_fn)
  trainer.with_loss_fn(
    lambda model, train_example, algo_config: grpo(
      model, train_example, algo_config=settings, pad_id=PAD, eos_id=EOS
    ),
    has_aux=True,
  )
  trainer.with_gen_model_input_fn(
    lambda example: {"train_example": example, "algo_config": settings}
  )
  step, _ = trainer.jit_train_and_eval_step()

  def do(turn):
    prompt, responses, advantages = cases.group(order, turn)
    size = len(responses) // parts
    examples = [
      _example(prompt, responses[i : i + size], advantages[i : i + size])
      for i in range(0, len(responses), size)
    ]
    jax.block_until_ready(examples)
    begun = time.perf_counter()
    for example in examples:
      step(example)
    jax.block_until_ready((jax.tree.leaves(trainer.optimizer), jax.tree.leaves(model)))
    seconds = time.perf_counter() - begun
    state = trainer.optimizer.opt_state
    # The first transformation of the chain has the norm; accumulation wraps the chain's state.
    norm = (state if accumulate is None else state.inner_opt_state)[0][...]
    return {"seconds": seconds, "grad_norm": float(norm)}

  return do


def _example(prompt, responses, advantages):
  """tunix's batch of one group's responses."""
  prompt_ids = jnp.array([prompt] * len(responses), jnp.int32)
  completion_ids = jnp.array(responses, jnp.int32)
  return TrainExample(
    prompt_ids=prompt_ids,
    prompt_mask=jnp.ones_like(prompt_ids),
    completion_ids=completion_ids,
    completion_mask=jnp.ones_like(completion_ids),
    advantages=jnp.array(advantages),
    ref_per_token_logps=None,
    old_per_token_logps=None,
  )


class _Ids:
  """A tokenizer for texts of token ids with spaces between them: tunix takes text prompts only."""

  def encode(self, text):
    return [int(word) for word in text.split()]

  def decode(self, ids):
    return ""

  def bos_id(self):
    return 0  # none: tunix puts it in front where it is not 0

  def eos_id(self):
    return EOS

  def pad_id(self):
    return PAD


def prepare_sample(order):
  config, model = load(order, remat=False)
  size = order["prompt"] + order["response"]
  cache = CacheConfig(size, config.num_layers, config.num_kv_heads, config.head_dim)
  sampler = Sampler(model, _Ids(), cache)

  def do(turn):
    prompts = [
      " ".join(map(str, cases.prompt(order, turn, i)))
      for i in range(order["prompts"])
      for _ in range(order["samples"])
    ]
    begun = time.perf_counter()
    sampler(
      prompts,
      max_generation_steps=order["response"],
      max_prompt_length=order["prompt"],
      return_logprobs=True,
      eos_tokens=[-1],  # responses run to their full length
      temperature=1.0,
      top_p=1.0,
      seed=turn,
    )
    return {"seconds": time.perf_counter() - begun}

  return do


if __name__ == "__main__":
  serve({"update": prepare_update, "sample": prepare_sample})
