"""The same work for all peers: shapes, tokens. Plain Python, for every environment."""

import random

from benchmarks.shapes import shape

_MORE = dict(rope_theta=100000.0, rms_norm_eps=1e-5, max_position_embeddings=8192)
# "nano" is for tests.
SHAPES = {
  "nano": shape(64, 128, 2, 2, 1, 512) | _MORE,
  "tiny": shape(256, 1024, 8, 4, 2, 16384) | _MORE,
}

LEARNING_RATE, GRAD_NORM, CLIP = 1e-6, 1.0, 0.2

_SPECIAL = 3  # ids below are padding, begin and end of text: no prompt and no response has them


def _tokens(order: dict, count: int, *name) -> list[int]:
  """`count` random token ids, the same for the same name."""
  draw = random.Random(repr(name))
  return [draw.randrange(_SPECIAL, SHAPES[order["shape"]]["vocab_size"]) for _ in range(count)]


def prompt(order: dict, turn: int, index: int) -> list[int]:
  """Prompt number `index` of a turn. Other prompts each turn, so that no cache has seen them."""
  return _tokens(order, order["prompt"], "prompt", turn, index)


def group(order: dict, turn: int) -> tuple[list[int], list[list[int]], list[float]]:
  """(prompt, responses, advantages) of the group that one update trains on."""
  responses = [
    _tokens(order, order["response"], "response", turn, sample)
    for sample in range(order["samples"])
  ]
  # Half of the responses good, half bad: mean 0, standard deviation 1.
  advantages = [1.0 if sample % 2 else -1.0 for sample in range(order["samples"])]
  return prompt(order, turn, 0), responses, advantages
