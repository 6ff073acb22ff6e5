"""The same update in torch and transformers."""

import statistics

import torch
import transformers
from torch.utils.checkpoint import checkpoint

from benchmarks.gpu.cases import CASES, SAMPLES, SHAPES, timed


def update(shape: str, case: str, rows: int, compiled: bool) -> dict:
  """The same update in torch and transformers: SDPA, checkpointed layers, fused AdamW, autocast.

  One response a row with its own prompt, as the published trainers do it; logits of response tokens
  only, in float32; `rows` sequences a micro-batch. `compiled`: the layers, if torch can do that
  here; the result says whether it did, and else why not.
  """
  given = CASES[case]
  cuda = torch.cuda.is_available()
  device = "cuda" if cuda else "cpu"
  torch.manual_seed(0)
  config = transformers.Qwen2Config(**SHAPES[shape], use_cache=False, attn_implementation="sdpa")
  with torch.device(device):
    model = transformers.Qwen2ForCausalLM(config)
  model.train()
  model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
  optimizer = torch.optim.AdamW(model.parameters(), lr=5e-7, fused=cuda)
  p, r, count = given.prompt, given.response, given.groups * SAMPLES
  tokens = torch.randint(0, config.vocab_size, (count, p + r), device=device)
  advantages = torch.randn(count, device=device)

  def logprobs_of(hidden, targets):
    logits = torch.nn.functional.linear(hidden, model.lm_head.weight).float()
    return torch.gather(logits, -1, targets[:, None])[:, 0] - torch.logsumexp(logits, -1)

  def step():
    # Gradients accumulate in .grad over the micro-batches.
    for i in range(0, count, rows):
      part = tokens[i : i + rows]
      with torch.autocast(device, torch.bfloat16, enabled=cuda):
        hidden = model.model(input_ids=part).last_hidden_state[:, p - 1 : -1]
        hidden, targets = hidden.reshape(-1, hidden.shape[-1]), part[:, p:].reshape(-1)
        # In chunks and recomputed in the backward pass, as ours: all logits do not fit.
        parts = [
          checkpoint(logprobs_of, h, t, use_reentrant=False)
          for h, t in zip(hidden.split(2048), targets.split(2048))
        ]
      logprobs = torch.cat(parts).view(len(part), r)
      # Equation (1) with importance weights; the sampler's log-probs are all -1.
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

  # Each layer is compiled alone; if that fails here, the eager update is measured instead.
  failure = None
  if compiled:
    for layer in model.model.layers:
      layer.compile()
    try:
      step()
    except Exception as error:  # torch.compile needs a C compiler and Python's headers
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
