"""The paper's step reward R = 2M / T (4.2): the ratio of Python's difflib.SequenceMatcher.

M is the number of characters in the matching blocks that SequenceMatcher finds between action and
target, T the number of characters of both. The measure is not symmetric: the action is the first
sequence. M is computed by one of two programs, and the tests compare both with the standard library
for equality: cydifflib (SequenceMatcher in C) for short texts, and `matching` for long ones, which
avoids SequenceMatcher's worst cases. Texts of 2,048 tokens take at most a second.
"""

import collections
import functools
from collections.abc import Callable, Sequence

from cydifflib import SequenceMatcher

from srl_jax.rewards.matching import Block, matched_characters, matching_blocks
from srl_jax.rewards.workers import Workers

# cydifflib visits each pair of equal characters once per matching block, and there are at most as
# many blocks as the shorter text has characters. Below this bound it takes at most 0.05 s
# (measured). Two ordinary texts of 900 characters reach the bound; `matching` is as fast there.
_VISITS_AT_MOST = 50_000_000

# Measured: cydifflib takes about 2 ns per pair of characters (500 to 10,000 characters), `matching`
# 1.2 us per character. Below a quarter of a second the overhead of workers does not pay, and jobs
# of 0.1 s balance the load.
_SECONDS_PER_CELL, _SECONDS_PER_CHARACTER = 2e-9, 1.2e-6
_SECONDS_WORTH_WORKERS, _SECONDS_PER_JOB = 0.25, 0.1

Pair = tuple[str, str]


def similarity(action: str, target: str, *, autojunk: bool = False) -> float:
  """Returns the similarity in [0, 1], `SequenceMatcher(None, action, target).ratio()`.

  Args:
    action: the policy's action; white space counts, so strip it first.
    target: the expert's action.
    autojunk: SequenceMatcher's heuristic that ignores frequent characters of a target of 200 or
      more characters. The paper's formula has no such rule, though difflib applies it by default.
      With it, a long step with a few words changed scores 0.5 against itself instead of 0.8.
  """
  if _visits(action, target) <= _VISITS_AT_MOST:
    return SequenceMatcher(None, action, target, autojunk=autojunk).ratio()
  matched = matched_characters(action, target, autojunk=autojunk)
  return 2.0 * matched / (len(action) + len(target))


def blocks(action: str, target: str, *, autojunk: bool = False) -> list[Block]:
  """Returns the matching blocks whose sizes add up to M of `similarity`, with the same arguments.

  They are SequenceMatcher's, in order, without its last one, which is always empty.
  """
  if _visits(action, target) > _VISITS_AT_MOST:
    return matching_blocks(action, target, autojunk=autojunk)
  matcher = SequenceMatcher(None, action, target, autojunk=autojunk)
  return [Block(*found) for found in matcher.get_matching_blocks() if found[2]]


def _visits(action: str, target: str) -> int:
  """Returns an upper bound on the pairs of characters that cydifflib visits over all blocks."""
  blocks = min(len(action), len(target))
  visits = len(action) * len(target) * blocks
  if visits <= _VISITS_AT_MOST:  # the cheap bound suffices
    return visits
  # Only pairs of equal characters are visited: sum over characters of count in a * count in b.
  in_action, in_target = collections.Counter(action), collections.Counter(target)
  return blocks * sum(count * in_target[character] for character, count in in_action.items())


def seconds(pair: Pair) -> float:
  """Returns the estimated seconds of `similarity` for a pair, by the faster of the two programs."""
  n, m = map(len, pair)
  return min(_SECONDS_PER_CELL * n * m, _SECONDS_PER_CHARACTER * (n + m))


def similarities(
  pairs: Sequence[Pair],
  *,
  autojunk: bool = False,
  workers: int = 0,
  measure: Callable[..., float] = similarity,
  seconds: Callable[[Pair], float] = seconds,
) -> list[float]:
  """Returns the similarity of each pair, in order; equal pairs are computed once.

  Args:
    pairs: (action, target).
    autojunk: as for `similarity`.
    workers: number of processes for a large batch (small ones are computed here); 0 for none.
    measure: of one pair, with the arguments of `similarity`; a function of a module, so that
      workers can import it.
    seconds: the estimated seconds of `measure` for a pair.

  Raises:
    RuntimeError: workers were killed twice on the same pairs, most likely because memory ran out.
  """
  different = list(dict.fromkeys(map(tuple, pairs)))
  if workers and sum(map(seconds, different)) >= _SECONDS_WORTH_WORKERS:
    jobs = [(chunk, measure, autojunk) for chunk in _chunks(different, seconds)]
    known = _by_workers(jobs, workers)
  else:
    known = _job((different, measure, autojunk))
  return [known[action, target] for action, target in pairs]


# Pairs that are computed by one call of a worker: the pairs, the measure, autojunk.
_Job = tuple[list[Pair], Callable[..., float], bool]


def _by_workers(jobs: list[_Job], workers: int) -> dict[Pair, float]:
  """Returns the similarity of each pair of the jobs, computed in worker processes."""
  pool = _pool(workers)
  results = pool.run(jobs)
  # A killed worker is no fault of the texts (there is no limit here), so its jobs run once more.
  lost = [i for i, result in enumerate(results) if result is None]
  for i, result in zip(lost, pool.run([jobs[i] for i in lost])):
    if result is None:
      raise RuntimeError(
        f"a scoring process was killed twice on the same {len(jobs[i][0])} pairs of texts, most"
        " likely because memory ran out: use fewer workers or shorter texts"
      )
    results[i] = result
  return dict(collections.ChainMap(*results))


def _chunks(pairs: list[Pair], seconds: Callable[[Pair], float]) -> list[list[Pair]]:
  """Returns jobs of about equal cost, the most expensive pairs first, so that the last is short."""
  chunks, total = [], 0.0
  for pair in sorted(pairs, key=seconds, reverse=True):
    if not chunks or total + seconds(pair) > _SECONDS_PER_JOB:
      chunks.append([])
      total = 0.0
    chunks[-1].append(pair)
    total += seconds(pair)
  return chunks


@functools.cache
def _pool(workers: int) -> Workers:
  """Returns the worker processes, one pool per count, kept for the life of the process."""
  return Workers(f"{__name__}:_job", workers)


def _job(job: _Job) -> dict[Pair, float]:
  """Returns the similarity of each pair of a job; runs in a worker."""
  pairs, measure, autojunk = job
  return {pair: measure(*pair, autojunk=autojunk) for pair in pairs}
