"""The work of every section, the same for us and for torch: shapes, tokens, sections."""

import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.shapes import shape
from srl_jax.learner import update

SAMPLES = 8  # responses of a group
# Qwen2.5's own shapes; of 7B as many layers as one card holds with float32 weights, moments and
# gradients.
SHAPES = {
  "7B, 8 layers": shape(3584, 18944, 8, 28, 4, 152064, tied=False),
  "1.5B": shape(1536, 8960, 28, 12, 2, 151936),
  "tiny": shape(64, 128, 2, 4, 2, 512, h=32),
}


class Case(NamedTuple):
  """An update: `groups` groups of a prompt and SAMPLES responses, of these many tokens.

  shared and naive: tokens_per_device with each prompt once, and with a copy for each response.
  """

  prompt: int
  response: int
  groups: int
  shared: int
  naive: int


CASES = {"7B, 8 layers": Case(1500, 1000, 4, 19072, 20096), "tiny": Case(40, 16, 2, 256, 256)}
REPEATS = 3  # timed calls, after the one that compiles


def timed(run: Callable[[], object]) -> list[float]:
  """Seconds of each of REPEATS calls, after one to warm up."""
  run()
  seconds = []
  for _ in range(REPEATS):
    begun = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - begun)
  return seconds


def sections(tiny: bool) -> dict[str, tuple[str, tuple]]:
  """{name: (function of ours or torch, arguments)}, the most important first.

  The first word of a name is what --sections selects. The budget of device time may end before the
  list: comparisons are first, variations after.
  """
  # chunks: trained tokens with logits at one time; the first is the default of a run.
  if tiny:
    wide, small, size, chunks = "tiny", "tiny", 256, (64, 32)
    widths, prompt, response, limits, tokens = (16,), 16, 8, (16, 1024), 12
  else:
    wide, small, size = "7B, 8 layers", "1.5B", 8192
    chunks = (update.CHUNK_ON_GPUS, 512, 2048, 8192)
    widths, prompt, response, limits, tokens = (256, 64), 512, 256, (512, 2048), 500

  def ours(sharing, remat=update.REMAT_ON_GPUS, chunk=chunks[0]):
    return "ours.update", (wide, sharing, remat, chunk)

  found = {"device": ("ours.device", ()), "ceiling": ("ours.ceiling", (size,))}
  found |= {f"update_7b {sharing}": ours(sharing) for sharing in ("shared", "naive")}
  found["torch"] = ("torch.update", (wide, 8, not tiny))
  for remat in ("matmuls", "full"):
    found[f"update_7b_{remat} shared"] = ours("shared", remat)
  # decode_limit: the same responses with room for few and for many tokens; the second should take
  # at most 1.5 times as long.
  for width in widths:
    for limit in limits:
      values = small, width, prompt, limit, tokens
      found[f"decode_limit {limit} {width}"] = ("ours.sampler", values)
    found[f"sampler {width}"] = ("ours.sampler", (small, width, prompt, response, response))
  for chunk in chunks[1:]:
    found[f"update_7b_chunks shared {chunk}"] = ours("shared", chunk=chunk)
  return found
