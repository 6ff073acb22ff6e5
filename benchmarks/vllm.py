"""Time of a weight push, and tokens per second of both rollout engines on the same prompts.

  launch/vllm_server.sh MODEL --dtype=float32 --max-model-len=1024 &
  python -m benchmarks.vllm --model=MODEL --server=http://127.0.0.1:8101

Responses run to their full length (no stop token), so both engines make the same number of tokens.
"""

import argparse
import statistics
import sys
import time

import jax

from srl_jax import command_line
from srl_jax.data.tokenizer import load_tokenizer
from srl_jax.errors import EngineError
from srl_jax.policy.sharding import make_mesh
from srl_jax.policy.weights import load_hf
from srl_jax.rollout.engine import Prompt, SamplingParams
from srl_jax.rollout.sampler import Sampler
from srl_jax.rollout.vllm_client import VllmEngine

TURNS = 3


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", required=True, help="folder")
  parser.add_argument("--server", required=True, help="base URLs, commas between")
  parser.add_argument("--prompts", type=int, default=16)
  parser.add_argument("--prompt_tokens", type=int, default=256)
  parser.add_argument("--samples", type=int, default=8)
  parser.add_argument("--max_tokens", type=int, default=64)
  given = parser.parse_args()
  with jax.set_mesh(make_mesh("data=1,fsdp=1,tensor=1")):
    _, model = load_hf(given.model, compute_dtype="float32")
    tokenizer = load_tokenizer(given.model)
    size = model.config.vocab_size
    batch = [
      Prompt(
        f"p{i}", tuple((7919 * i + 31 * t * t + 17) % size for t in range(given.prompt_tokens))
      )
      for i in range(given.prompts)
    ]
    served = VllmEngine(given.server.split(","), tokenizer, [], weights_root="/dev/shm", say=print)
    engines = {"vllm": served, "builtin": Sampler(tokenizer, [], given.prompts * given.samples)}
    found = {name: [] for name in engines}
    # In turn, so that whatever else the machine does falls on both; the first turn warms up.
    for turn in range(1 + TURNS):
      for name, engine in engines.items():
        measured = measure(engine, model, batch, given, turn)
        found[name] += [measured] if turn else []
    for name, engine in engines.items():
      engine.close()
      pushes, rates = zip(*found[name])
      each = ", ".join(f"{rate:.0f}" for rate in rates)
      median = statistics.median(rates)
      print(f"{name:8} push {statistics.median(pushes):.2f} s  {median:,.0f} tokens/s ({each})")


def measure(engine, model, batch, given, turn: int) -> tuple[float, float]:
  """(seconds of a push, tokens per second)."""
  begun = time.perf_counter()
  engine.load_weights(model, turn)
  jax.block_until_ready(getattr(engine, "layers", None))  # the built-in engine's copy is made later
  pushed = time.perf_counter()
  params = SamplingParams(given.max_tokens, step=turn)
  groups = list(engine.sample(batch, given.samples, params))
  tokens = sum(len(rollout.token_ids) for group in groups for rollout in group)
  return pushed - begun, tokens / (time.perf_counter() - pushed)


if __name__ == "__main__":
  with command_line.in_one_line():
    try:
      main()
    except EngineError as error:
      sys.exit(f"error: {error}")
