"""Measures vLLM: its sampler, without a server around it."""

import time

from vllm import LLM, SamplingParams, TokensPrompt

from benchmarks.peers import cases
from benchmarks.peers.worker import serve


def prepare_sample(order):
  engine = LLM(
    order["model"],
    skip_tokenizer_init=True,
    dtype="float32",
    max_model_len=order["prompt"] + order["response"],
    max_num_seqs=order["prompts"] * order["samples"],
    enforce_eager=True,
    disable_log_stats=True,
    seed=0,
  )
  params = SamplingParams(
    n=order["samples"],
    max_tokens=order["response"],
    ignore_eos=True,  # responses run to their full length
    temperature=1.0,
    logprobs=0,  # of the sampled token alone
    detokenize=False,
  )

  def do(turn):
    prompts = [
      TokensPrompt(prompt_token_ids=cases.prompt(order, turn, i)) for i in range(order["prompts"])
    ]
    begun = time.perf_counter()
    engine.generate(prompts, params, use_tqdm=False)
    return {"seconds": time.perf_counter() - begun}

  return do


if __name__ == "__main__":
  serve({"sample": prepare_sample})
