"""Measures TRL: its GRPO update, in torch."""

import pathlib
import tempfile
import time

import datasets
import torch
import transformers
import trl

from benchmarks.peers import cases
from benchmarks.peers.worker import serve

MODEL = pathlib.Path(__file__).resolve().parents[2] / "configs" / "miniature"


def prepare_update(order):
  """TRL's own trainer, loss, backward pass, gradient clipping and optimiser; nothing generated."""
  model = transformers.AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.float32)
  settings = trl.GRPOConfig(
    output_dir=tempfile.mkdtemp(),
    use_cpu=True,
    bf16=False,
    report_to="none",
    loss_type="grpo",  # mean over sequences of the mean over tokens
    beta=0.0,
    epsilon=cases.CLIP,
    learning_rate=cases.LEARNING_RATE,
    lr_scheduler_type="constant",
    max_grad_norm=cases.GRAD_NORM,
    num_generations=order["samples"],
    per_device_train_batch_size=order["samples"],
    max_completion_length=order["response"],
    gradient_checkpointing=False,
  )
  trainer = trl.GRPOTrainer(
    model=model,
    reward_funcs=lambda completions, **_: [0.0] * len(completions),
    args=settings,
    train_dataset=datasets.Dataset.from_list([{"prompt": "-"}] * order["samples"]),
    # The trainer requires a tokenizer but reads only its special tokens.
    processing_class=transformers.AutoTokenizer.from_pretrained(MODEL),
  )
  trainer.create_optimizer_and_scheduler(num_training_steps=1000)
  model.train()
  trainer.current_gradient_accumulation_steps = 1  # its loop over the data would set it

  def do(turn):
    prompt, responses, advantages = cases.group(order, turn)
    prompt_ids = torch.tensor([prompt] * order["samples"])
    completion_ids = torch.tensor(responses)
    inputs = {
      "prompt_ids": prompt_ids,
      "prompt_mask": torch.ones_like(prompt_ids),
      "completion_ids": completion_ids,
      "completion_mask": torch.ones_like(completion_ids),
      "advantages": torch.tensor(advantages),
      "num_items_in_batch": torch.tensor(completion_ids.numel()),
    }
    # In the order of the trainer's own training_step and loop.
    begun = time.perf_counter()
    loss = trainer.compute_loss(model, inputs)
    trainer.accelerator.backward(loss)
    norm = trainer.accelerator.clip_grad_norm_(model.parameters(), cases.GRAD_NORM)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    trainer.optimizer.zero_grad()
    return {"seconds": time.perf_counter() - begun, "grad_norm": float(norm)}

  return do


if __name__ == "__main__":
  serve({"update": prepare_update})
