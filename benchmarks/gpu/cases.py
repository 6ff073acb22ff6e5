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


CASES = {
  "1500/1000": Case(1500, 1000, 4, 19072, 20096),
  "2000/500": Case(2000, 500, 6, 18048, 20096),
  "tiny": Case(40, 16, 2, 256, 256),
}
REPEATS = 3  # timed calls, after the one that compiles


def long_limits(tiny: bool) -> dict[str, tuple[str, tuple]]:
  """The sections of the sampler with long limits.

  decode_limit: responses of 500 tokens with room for 512 and for 2,048, which should cost at most
  1.5 times as much. decode_stops: at most 2,048 tokens, with stop ids that end a response after 500
  tokens in the mean.
  """
  model, widths, prompt, limits, tokens = "1.5B", (256, 64), 512, (512, 2048), 500
  if tiny:
    model, widths, prompt, limits, tokens = "tiny", (16,), 16, (16, 1024), 12
  found = {}
  for width in widths:
    for limit in limits:
      values = model, width, prompt, limit, tokens
      found[f"decode_limit {limit} {width}"] = ("decoding.of_equal_length", values)
    found[f"decode_stops {limits[-1]} {width}"] = ("decoding.until_a_stop", values)
  return found


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

  The first word of a name is what --sections selects.
  """
  # chunks: trained tokens with logits at one time; the first is the default of a run.
  if tiny:
    wide, small, cases, size, chunks = "tiny", "tiny", ["tiny"], 256, (64, 32)
    widths, lengths = (16,), (16, 8)
  else:
    wide, small, cases, size = "7B, 8 layers", "1.5B", ["1500/1000", "2000/500"], 8192
    widths, lengths, chunks = (64, 256), (512, 256), (update.CHUNK_ON_GPUS, 512, 2048, 8192)
  # The budget of device time may end before the list: comparisons are first, variations after.
  first, *others = cases

  def ours(shape, case, sharing, remat=update.REMAT_ON_GPUS, chunk=chunks[0]):
    return "ours.update", (shape, case, sharing, remat, chunk)

  found = {"device": ("ours.device", ()), "ceiling": ("ours.ceiling", (size,))}
  for sharing in ("shared", "naive"):
    found[f"update_7b {first} {sharing}"] = ours(wide, first, sharing)
  found[f"torch {first}"] = ("torch.update", (wide, first, 8, not tiny))
  for remat in ("matmuls", "full"):
    found[f"update_7b_{remat} {first} shared"] = ours(wide, first, "shared", remat)
  for case in others:
    for sharing in ("shared", "naive"):
      found[f"update_7b {case} {sharing}"] = ours(wide, case, sharing)
  found[f"update_1.5b {first} shared"] = ours(small, first, "shared")
  found |= long_limits(tiny)
  for responses in widths:
    found[f"sampler {responses}"] = ("ours.sampler", (small, responses, *lengths))
  for chunk in chunks[1:]:
    found[f"update_7b_chunks {first} shared {chunk}"] = ours(wide, first, "shared", chunk=chunk)
  return found
