"""Measures tunix: its GRPO update, in JAX."""

import time

import jax
import jax.numpy as jnp
import optax
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params
from tunix.rl import function_registry
from tunix.rl.grpo.grpo_learner import GRPOConfig, TrainExample
from tunix.rl.trainer import Trainer
from tunix.sft.peft_trainer import TrainingConfig

from benchmarks.peers import cases
from benchmarks.peers.worker import serve

PAD, EOS = 0, 2


def load(order):
  """The model of an order, in tunix's terms."""
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
    remat_config=qwen2.RematConfig.NONE,
  )
  return params.create_model_from_safe_tensors(order["model"], config, dtype=jnp.float32)


def _remembers_norm():
  """An optax transformation that keeps the norm of the incoming gradient in its state."""
  return optax.GradientTransformation(
    lambda params: jnp.zeros(()),
    lambda grads, state, params=None: (grads, optax.global_norm(grads)),
  )


def prepare_update(order):
  """tunix's own trainer with its GRPO loss, as its GRPOLearner wires them."""
  model = load(order)
  settings = GRPOConfig(num_generations=order["samples"], beta=0.0, epsilon=cases.CLIP)
  settings.temperature = 1.0
  tx = optax.chain(
    _remembers_norm(),
    optax.clip_by_global_norm(cases.GRAD_NORM),
    optax.adamw(cases.LEARNING_RATE, weight_decay=0.0),
  )
  trainer = Trainer(model, tx, TrainingConfig(eval_every_n_steps=10**6), dict)
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
    prompt_ids = jnp.array([prompt] * len(responses), jnp.int32)
    completion_ids = jnp.array(responses, jnp.int32)
    example = TrainExample(
      prompt_ids=prompt_ids,
      prompt_mask=jnp.ones_like(prompt_ids),
      completion_ids=completion_ids,
      completion_mask=jnp.ones_like(completion_ids),
      advantages=jnp.array(advantages),
      ref_per_token_logps=None,
      old_per_token_logps=None,
    )
    jax.block_until_ready(example)
    begun = time.perf_counter()
    step(example)
    jax.block_until_ready((jax.tree.leaves(trainer.optimizer), jax.tree.leaves(model)))
    seconds = time.perf_counter() - begun
    # The state of the chain's first transformation.
    return {"seconds": seconds, "grad_norm": float(trainer.optimizer.opt_state[0][...])}

  return do


if __name__ == "__main__":
  serve({"update": prepare_update})
