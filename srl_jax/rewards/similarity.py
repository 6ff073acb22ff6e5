"""R = 2M / T, the paper's step reward (4.2): the ratio of Python's difflib.SequenceMatcher.

M is the number of characters in the matching blocks that SequenceMatcher finds between action and
target, T the number of characters of both. The measure is not symmetric: the action is the first
sequence. Two programs compute M, both bit for bit as the standard library does, which the tests
hold them to: cydifflib (SequenceMatcher in C) for short texts, and `matching` for long ones, whose
cost does not explode on repeats. A text of 2,048 tokens takes at most a second.
"""

import collections
import functools
from collections.abc import Sequence

from cydifflib import SequenceMatcher

from srl_jax.rewards.matching import matched_characters
from srl_jax.rewards.workers import Workers

# cydifflib visits each pair of equal characters once per matching block, and there are at most as
# many blocks as the shorter text has characters. Within this limit it takes at most 0.05 s
# (measured); two ordinary texts of 900 characters reach it, where `matching` is as fast.
_VISITS_AT_MOST = 50_000_000

# Measured: cydifflib takes about 2 ns per pair of characters (500 to 10,000 characters), `matching`
# 1.2 us per character. A batch under a quarter of a second is not worth sending away, and a job of
# 0.1 s keeps workers even.
_SECONDS_PER_CELL, _SECONDS_PER_CHARACTER = 2e-9, 1.2e-6
_SECONDS_WORTH_WORKERS, _SECONDS_PER_JOB = 0.25, 0.1

Pair = tuple[str, str]


def similarity(action: str, target: str, *, autojunk: bool = False) -> float:
  """Returns the similarity in [0, 1], `SequenceMatcher(None, action, target).ratio()`.

  Args:
    action: what the policy did; compared as it is, so strip it before.
    target: what the expert did.
    autojunk: the matcher's heuristic that ignores the frequent characters of a target of 200 or
      more. The paper's formula has no such rule, its words name difflib with no setting; with it a
      long step is hardly similar to itself with a few words changed (0.5 instead of 0.8).
  """
  if _visits(action, target) <= _VISITS_AT_MOST:
    return SequenceMatcher(None, action, target, autojunk=autojunk).ratio()
  matched = matched_characters(action, target, autojunk=autojunk)
  return 2.0 * matched / (len(action) + len(target))


def _visits(action: str, target: str) -> int:
  """A bound on the pairs of characters that cydifflib visits, over all its blocks."""
  blocks = min(len(action), len(target))
  visits = len(action) * len(target) * blocks
  if visits <= _VISITS_AT_MOST:  # no need to count
    return visits
  in_action, in_target = collections.Counter(action), collections.Counter(target)
  return blocks * sum(count * in_target[character] for character, count in in_action.items())


def similarities(pairs: Sequence[Pair], *, autojunk: bool = False, workers: int = 0) -> list[float]:
  """Returns the similarity of each pair, in order; equal pairs are computed once.

  Args:
    pairs: (action, target).
    autojunk: as for `similarity`.
    workers: processes to share a large batch among (small ones are computed here); 0 for none.

  Raises:
    RuntimeError: workers were killed twice over the same pairs (most likely for lack of memory).
  """
  different = list(dict.fromkeys(map(tuple, pairs)))
  if workers and sum(map(_seconds, different)) >= _SECONDS_WORTH_WORKERS:
    values = _by_workers(different, autojunk, workers)
  else:
    values = [similarity(*pair, autojunk=autojunk) for pair in different]
  known = dict(zip(different, values))
  return [known[action, target] for action, target in pairs]


def _by_workers(pairs: list[Pair], autojunk: bool, workers: int) -> list[float]:
  jobs = [(chunk, autojunk) for chunk in _chunks(pairs)]
  pool = _pool(workers)
  results = pool.run(jobs)
  lost = [i for i, result in enumerate(results) if result is None]
  for i, result in zip(lost, pool.run([jobs[i] for i in lost])):
    if result is None:
      raise RuntimeError(
        f"a scoring process was killed twice over the same {len(jobs[i][0])} pairs of texts, most"
        " likely for lack of memory: use fewer workers or shorter texts"
      )
    results[i] = result
  known: dict[Pair, float] = {}
  for (chunk, _), values in zip(jobs, results):
    known |= zip(chunk, values)
  return [known[pair] for pair in pairs]


def _chunks(pairs: list[Pair]) -> list[list[Pair]]:
  """Jobs of about equal cost, the costliest first, so that the last to finish is a short one."""
  chunks, seconds = [], 0.0
  for pair in sorted(pairs, key=_seconds, reverse=True):
    if not chunks or seconds + _seconds(pair) > _SECONDS_PER_JOB:
      chunks.append([])
      seconds = 0.0
    chunks[-1].append(pair)
    seconds += _seconds(pair)
  return chunks


def _seconds(pair: Pair) -> float:
  """About the time that a pair takes."""
  n, m = map(len, pair)
  return min(_SECONDS_PER_CELL * n * m, _SECONDS_PER_CHARACTER * (n + m))


@functools.cache
def _pool(workers: int) -> Workers:
  return Workers(f"{__name__}:_job", workers)


def _job(job: tuple[list[Pair], bool]) -> list[float]:
  """In a worker."""
  pairs, autojunk = job
  return [similarity(*pair, autojunk=autojunk) for pair in pairs]
