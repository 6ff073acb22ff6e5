"""Characters in the matching blocks of difflib.SequenceMatcher, without its worst cases.

SequenceMatcher takes the longest common substring of two texts (the earliest in the first text,
then the earliest in the second), and does the same left and right of it. Its dynamic programme
visits every pair of equal characters, once per block: spaces against a text with many spaces take
minutes. Here the work grows with (n + m) log(m) for each length that a block has. The lengths of
disjoint blocks add up to at most the shorter text's m, so at most sqrt(2 m) of them differ.

The blocks are found by descending length L, in all parts of the texts ("boxes") at once:

  - a suffix array with its LCP array (Manber and Myers, 1990, prefix doubling) puts all substrings
    of length L into classes, by one cumulative sum
  - within a box, the blocks of length L follow one another: left of the earliest one there is none
  - what is left between the blocks are smaller boxes, without a block of length L
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
  """A part a[a_low:a_high] of the first text that is matched with b[b_low:b_high] of the second."""

  a_low: int
  a_high: int
  b_low: int
  b_high: int


def matched_characters(a: str, b: str, *, autojunk: bool = False) -> int:
  """Returns the sum of the lengths in SequenceMatcher(None, a, b, autojunk).get_matching_blocks().

  Args:
    a: the first text; any code points, lone surrogates included.
    b: the second text.
    autojunk: ignore the popular characters of a long b, as SequenceMatcher does.
  """
  if not a or not b:
    return 0
  search = _prepare(a, b, autojunk)
  matched = 0
  while candidates := _longest(search):
    matched += _take_blocks(search, candidates)
  # SequenceMatcher extends even an empty match by characters that autojunk had left out.
  return matched + sum(_common_prefix(search, box) for box in search.boxes.values())


# ---------------------------------------------------------------------------------- suffix array


def _prepare(a: str, b: str, autojunk: bool) -> "_Search":
  codes_a, codes_b = (np.frombuffer(x.encode("utf-32-le", "surrogatepass"), "<u4") for x in (a, b))
  text = _joined(codes_a, codes_b, autojunk)
  n, m = len(a), len(b)
  order, ranks = _suffix_array(text, longest=min(n, m))
  place = np.empty_like(order)
  place[order] = np.arange(len(order), dtype=order.dtype)
  common = _common_prefixes(order[:-1], order[1:], ranks)
  room = np.minimum(_longest_in_b(order, ranks, n)[place[:n]], np.arange(n, 0, -1))
  return _Search(
    a=a,
    b=b,
    place_a=place[:n],
    place_b=place[n + 1 : n + 1 + m],
    common=common,
    boxes={0: Box(0, n, 0, m)},
    room_a=room,
    room_b=np.arange(m, 0, -1),
    low_b=np.zeros(n, np.int64),
    high_b=np.full(n, m),
    box_a=np.zeros(n, np.int64),
  )


def _joined(codes_a: np.ndarray, codes_b: np.ndarray, autojunk: bool) -> np.ndarray:
  """Both texts as dense codes, a mark after each; characters that must not match differ."""
  _, dense = np.unique(np.concatenate([codes_a, codes_b]), return_inverse=True)
  dense_a, dense_b = dense[: len(codes_a)] + 2, dense[len(codes_a) :] + 2
  if autojunk and len(codes_b) >= 200:
    counts = np.bincount(dense_b, minlength=dense.max() + 3)
    popular = counts > len(codes_b) // 100 + 1
    unlike = len(popular)
    dense_a = np.where(popular[dense_a], unlike, dense_a)
    dense_b = np.where(popular[dense_b], unlike + 1, dense_b)
  return np.concatenate([dense_a, [1], dense_b, [0]])


def _suffix_array(text: np.ndarray, longest: int) -> tuple[np.ndarray, list[np.ndarray]]:
  """The suffixes by their first `longest` characters, and for each k the ranks by the first 2^k."""
  size = len(text)
  order = np.argsort(text, kind="stable")
  ranks = [_ranks(text, order)]
  length = 1
  while length < longest and ranks[-1].max() < size - 1:
    second = np.zeros(size, np.int64)
    second[:-length] = ranks[-1][length:] + 1
    keys = ranks[-1] * (size + 1) + second
    order = np.argsort(keys, kind="stable")
    ranks.append(_ranks(keys, order))
    length *= 2
  return order, ranks


def _ranks(keys: np.ndarray, order: np.ndarray) -> np.ndarray:
  in_order = keys[order]
  ranks = np.zeros(len(keys), np.int64)
  ranks[order[1:]] = np.cumsum(in_order[1:] != in_order[:-1])
  return ranks


def _common_prefixes(left: np.ndarray, right: np.ndarray, ranks: list[np.ndarray]) -> np.ndarray:
  """Lengths of the common prefixes of pairs of suffixes, exact up to the longest that counts."""
  length = np.zeros(len(left), np.int64)
  for k in reversed(range(len(ranks))):
    # The end mark occurs once, so no two suffixes agree up to it and the index stays inside.
    length += (ranks[k][left + length] == ranks[k][right + length]) * (1 << k)
  return length


def _longest_in_b(order: np.ndarray, ranks: list[np.ndarray], n: int) -> np.ndarray:
  """For each suffix, in their order, its longest prefix that occurs in b: a neighbour has it."""
  size = len(order)
  in_b = order > n
  index = np.arange(size)
  before = np.maximum.accumulate(np.where(in_b, index, -1))
  after = np.minimum.accumulate(np.where(in_b, index, size)[::-1])[::-1]
  longest = np.zeros(size, np.int64)
  for neighbour in (before, after):
    known = np.flatnonzero((neighbour >= 0) & (neighbour < size) & ~in_b)
    found = _common_prefixes(order[known], order[neighbour[known]], ranks)
    longest[known] = np.maximum(longest[known], found)
  return longest


# ---------------------------------------------------------------------------------- blocks


@dataclasses.dataclass
class _Search:
  """What is left to match. Positions count from the start of their own text.

  Attributes:
    a, b: the texts.
    place_a, place_b: the place of each position's suffix in the suffix array.
    common: LCP array, `common[r]` of the suffixes at places r and r + 1.
    boxes: what is left, by number.
    room_a: at most so long is a match that starts here; 0 where none can.
    room_b: characters up to the end of the box; 0 outside the boxes.
    low_b, high_b, box_a: for each position of a, its box's part of b and its box's number.
  """

  a: str
  b: str
  place_a: np.ndarray
  place_b: np.ndarray
  common: np.ndarray
  boxes: dict[int, Box]
  room_a: np.ndarray
  room_b: np.ndarray
  low_b: np.ndarray
  high_b: np.ndarray
  box_a: np.ndarray


class _Candidates(NamedTuple):
  """Positions in a, ascending, where a match of one length starts, and where it is in b.

  `first` and `last` index `places`, the positions in b ordered by substring, then by position.
  """

  length: int
  a: np.ndarray
  first: np.ndarray
  last: np.ndarray
  places: np.ndarray


def _longest(search: _Search) -> _Candidates | None:
  """The candidates of the greatest length that has any; gallops down, then bisects."""
  high, step = int(search.room_a.max()), 0
  length = high
  while True:
    if length <= 0:
      return None
    best = _candidates(search, length)
    if best:
      break
    high = min(length - 1, int(search.room_a.max()))
    length = max(high - step, min(high, 1))
    step = 2 * step + 1
  low = length
  while low < high:
    middle = (low + high + 1) // 2
    found = _candidates(search, middle)
    low, high, best = (middle, high, found) if found else (low, middle - 1, best)
  return best


def _candidates(search: _Search, length: int) -> _Candidates | None:
  """The candidates of one length, or None; positions without a match keep less room."""
  a = np.flatnonzero(search.room_a >= length)
  b = np.flatnonzero(search.room_b >= length)
  # Suffixes with the same first `length` characters are neighbours: a class each.
  classes = np.concatenate(
    [np.zeros(1, np.int32), np.cumsum(search.common < length, dtype=np.int32)]
  )
  stride = len(search.b) + 1
  keys = np.sort(classes[search.place_b[b]] * np.int64(stride) + b)
  wanted = classes[search.place_a[a]] * np.int64(stride)
  first = np.searchsorted(keys, wanted + search.low_b[a])
  last = np.searchsorted(keys, wanted + search.high_b[a] - length, side="right") - 1
  found = first <= last
  search.room_a[a[~found]] = length - 1
  if not found.any():
    return None
  return _Candidates(length, a[found], first[found], last[found], keys % stride)


def _take_blocks(search: _Search, candidates: _Candidates) -> int:
  """Takes all blocks of the candidates' length, splits their boxes, returns the matched length."""
  numbers = search.box_a[candidates.a]
  starts = np.flatnonzero(np.diff(numbers, prepend=-1))
  matched = 0
  for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)]):
    matched += _take_in_box(search, int(numbers[start]), candidates, start, stop)
  np.minimum(search.room_a, candidates.length - 1, out=search.room_a)
  return matched


def _take_in_box(
  search: _Search, number: int, candidates: _Candidates, start: int, stop: int
) -> int:
  box = search.boxes.pop(number)
  search.room_b[box.b_low : box.b_high] = 0
  a, first, last = (x[start:stop] for x in (candidates.a, candidates.first, candidates.last))
  last_b = candidates.places[last]
  matched, at = 0, 0
  while (at := _next_at_least(last_b, at, box.b_low)) < len(a):
    places = candidates.places[first[at] : last[at] + 1]
    j = int(places[0])
    if j < box.b_low:
      j = int(places[np.searchsorted(places, box.b_low)])
    i, j, size = _extended(search, box, int(a[at]), j, candidates.length)
    _keep(search, Box(box.a_low, i, box.b_low, j))
    search.room_a[i : i + size] = 0
    matched += size
    box = Box(i + size, box.a_high, j + size, box.b_high)
    at += int(np.searchsorted(a[at:], box.a_low))
  _keep(search, box)
  return matched


def _next_at_least(values: np.ndarray, at: int, low: int) -> int:
  """The first index from `at` on whose value is at least `low`, or the number of values."""
  width = 16
  while at < len(values):
    hits = values[at : at + width] >= low
    hit = int(hits.argmax())
    if hits[hit]:
      return at + hit
    at += width
    width *= 2
  return len(values)


def _extended(search: _Search, box: Box, i: int, j: int, size: int) -> tuple[int, int, int]:
  """A block, extended both ways within its box by characters that autojunk had left out."""
  a, b = search.a, search.b
  while i > box.a_low and j > box.b_low and a[i - 1] == b[j - 1]:
    i, j, size = i - 1, j - 1, size + 1
  return i, j, size + _common_prefix(search, Box(i + size, box.a_high, j + size, box.b_high))


def _common_prefix(search: _Search, box: Box) -> int:
  length = 0
  for x, y in zip(range(box.a_low, box.a_high), range(box.b_low, box.b_high)):
    if search.a[x] != search.b[y]:
      break
    length += 1
  return length


def _keep(search: _Search, box: Box) -> None:
  """Adds a box, unless nothing can match in it."""
  part_a, part_b = slice(box.a_low, box.a_high), slice(box.b_low, box.b_high)
  width_a, width_b = box.a_high - box.a_low, box.b_high - box.b_low
  if width_a == 0 or width_b == 0:
    search.room_a[part_a] = 0
    return
  number = box.a_low  # a_low is in no other box
  search.boxes[number] = box
  search.room_a[part_a] = np.minimum(search.room_a[part_a], np.arange(width_a, 0, -1))
  search.room_b[part_b] = np.arange(width_b, 0, -1)
  search.low_b[part_a], search.high_b[part_a] = box.b_low, box.b_high
  search.box_a[part_a] = number
