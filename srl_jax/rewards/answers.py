"""Final answers: found in a solution, and compared."""

import functools
import os
import re
from collections.abc import Sequence

from srl_jax.rewards.workers import Workers

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_SECONDS, _MEGABYTES = 2, 1024


def extract_answer(text: str) -> str | None:
  """Returns the final answer of a solution as it is written there, or None if there is none."""
  return last_boxed(text)


def last_boxed(text: str) -> str | None:
  """Returns the content of the last box that is closed and not empty, or None."""
  opened, last = [], None
  for match in _BOX_OR_BRACE.finditer(text):
    token = match[0]
    if token == "{" or token.startswith(("\\boxed", "\\fbox")):
      opened.append((match.end(), token != "{"))
    elif token == "}" and opened:
      start, is_box = opened.pop()
      if is_box and text[start : match.start()].strip():
        last = text[start : match.start()].strip()
  return last


def answers_equal(predicted: str | None, gold: str) -> bool:
  """Returns whether two final answers mean the same."""
  return equal_pairs([(predicted, gold)])[0]


def equal_pairs(pairs: Sequence[tuple[str | None, str]]) -> list[bool]:
  """Returns `answers_equal` for each (predicted, gold)."""
  equal = [p is not None and p.strip() == g.strip() for p, g in pairs]
  open_ = [i for i, (p, _) in enumerate(pairs) if p is not None and not equal[i]]
  for i, verdict in zip(open_, _pool().run([pairs[i] for i in open_])):
    equal[i] = bool(verdict)
  return equal


@functools.cache
def _pool() -> Workers:
  count = min(4, os.cpu_count() or 1)
  return Workers(f"{__name__}:_judge", count, seconds=_SECONDS, megabytes=_MEGABYTES)


def _judge(pair: tuple[str, str]) -> bool:
  """In a worker."""
  from math_verify import parse, verify

  predicted, gold = (parse(f"${side}$", parsing_timeout=None) for side in pair)
  return verify(gold, predicted, timeout_seconds=None)
