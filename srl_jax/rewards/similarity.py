"""R = 2M / T, the paper's step reward (4.2): Python's difflib.SequenceMatcher ratio, in C.

M is the number of characters in the matching blocks that SequenceMatcher finds between action and
target, T the number of characters of both. cydifflib computes it 7 to 20 times as fast as the
standard library and bit for bit the same, which the tests hold it to. The measure is not symmetric:
the action is the first sequence.
"""

import functools
from collections.abc import Sequence

from cydifflib import SequenceMatcher

from srl_jax.rewards.workers import Workers

# The matcher takes about 2 ns per pair of characters (measured, 500 to 10,000 characters). A batch
# under a quarter of a second is not worth sending away, and a job of 0.1 s keeps workers even.
_CELLS_WORTH_WORKERS, _CELLS_PER_JOB = 125_000_000, 50_000_000

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
  return SequenceMatcher(None, action, target, autojunk=autojunk).ratio()


def similarities(pairs: Sequence[Pair], *, autojunk: bool = False, workers: int = 0) -> list[float]:
  """Returns the similarity of each pair, in order; equal pairs are computed once.

  Args:
    pairs: (action, target).
    autojunk: as for `similarity`.
    workers: processes to share a large batch among (small ones are computed here); 0 for none.

  Raises:
    RuntimeError: workers were killed twice over the same pairs (most likely for lack of memory).
  """
  different = list(dict.fromkeys((action, target) for action, target in pairs))
  if workers and sum(map(_cells, different)) >= _CELLS_WORTH_WORKERS:
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
  known = {pair: v for (chunk, _), values in zip(jobs, results) for pair, v in zip(chunk, values)}
  return [known[pair] for pair in pairs]


def _chunks(pairs: list[Pair]) -> list[list[Pair]]:
  """Jobs of about equal cost, the costliest first, so that the last to finish is a short one."""
  chunks, cells = [], 0
  for pair in sorted(pairs, key=_cells, reverse=True):
    if not chunks or cells + _cells(pair) > _CELLS_PER_JOB:
      chunks.append([])
      cells = 0
    chunks[-1].append(pair)
    cells += _cells(pair)
  return chunks


def _cells(pair: Pair) -> int:
  return len(pair[0]) * len(pair[1])


@functools.cache
def _pool(workers: int) -> Workers:
  return Workers(f"{__name__}:_job", workers)


def _job(job: tuple[list[Pair], bool]) -> list[float]:
  """In a worker."""
  pairs, autojunk = job
  return [similarity(*pair, autojunk=autojunk) for pair in pairs]
