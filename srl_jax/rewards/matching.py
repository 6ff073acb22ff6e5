"""The matching blocks of difflib.SequenceMatcher, without its worst cases.

SequenceMatcher finds the longest common substring of two texts (the earliest in the first text,
then the earliest in the second) and recurses left and right of it. Its dynamic programme visits
every pair of equal characters once per block, which takes minutes for texts with many spaces. Here
the work is O((n + m) log m) for each distinct block length. The lengths of disjoint blocks add up
to at most the shorter text's m, so there are at most sqrt(2 m) distinct lengths.

The blocks are found by descending length L, in all parts of the texts ("boxes") at once:

  - a suffix array with its LCP array (Manber and Myers, 1990, prefix doubling) sorts all substrings
    of length L into classes of equal ones, by one cumulative sum
  - within a box, the blocks of length L are taken from left to right, as the recursion would take
    them: the earliest block has no other one to its left
  - the remainders between the blocks become smaller boxes, which have no block of length L
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class Block(NamedTuple):
  """Equal parts a[i : i + size] and b[j : j + size] of the two texts."""

  i: int
  j: int
  size: int


class Box(NamedTuple):
  """A part a[a_low:a_high] of the first text that is matched with b[b_low:b_high] of the second."""

  a_low: int
  a_high: int
  b_low: int
  b_high: int


def matched_characters(a: str, b: str, *, autojunk: bool = False) -> int:
  """Returns the sum of the sizes of `matching_blocks`, with the same arguments."""
  return sum(block.size for block in _blocks(a, b, autojunk))


def matching_blocks(a: str, b: str, *, autojunk: bool = False) -> list[Block]:
  """Returns get_matching_blocks() of SequenceMatcher(None, a, b, autojunk) but its last, empty one.

  Args:
    a: the first text; any code points, including lone surrogates.
    b: the second text.
    autojunk: ignore the popular characters of a long b, as SequenceMatcher does.
  """
  merged: list[Block] = []
  for block in sorted(_blocks(a, b, autojunk)):
    last = merged[-1] if merged else Block(0, 0, 0)
    # SequenceMatcher joins blocks that are adjacent in both texts.
    if last.size and (last.i + last.size, last.j + last.size) == (block.i, block.j):
      merged[-1] = last._replace(size=last.size + block.size)
    else:
      merged.append(block)
  return merged


def _blocks(a: str, b: str, autojunk: bool) -> list[Block]:
  """Returns the matching blocks as they are found, by descending size."""
  if not a or not b:
    return []
  search = _prepare(a, b, autojunk)
  # Each iteration takes all blocks of the longest length that is left, so the lengths descend.
  while candidates := _longest(search):
    _take_blocks(search, candidates)
  # SequenceMatcher extends every match, even an empty one, by adjacent characters that autojunk
  # ignored. A remaining box has no match left, so only its common prefix can be added.
  for box in search.boxes.values():
    if size := _common_prefix(search, box):
      search.blocks.append(Block(box.a_low, box.b_low, size))
  return search.blocks


# ---------------------------------------------------------------------------------- suffix array


def _prepare(a: str, b: str, autojunk: bool) -> "_Search":
  """Returns the search state with one box, the two whole texts."""
  codes_a, codes_b = (np.frombuffer(x.encode("utf-32-le", "surrogatepass"), "<u4") for x in (a, b))
  text = _joined(codes_a, codes_b, autojunk)
  n, m = len(a), len(b)
  # Concatenated: n characters of a, a mark, m characters of b, a mark. Position j of b is therefore
  # suffix n + 1 + j.
  order, ranks = _suffix_array(text, longest=min(n, m))
  place = np.empty_like(order)  # the inverse permutation: suffix -> its index in `order`
  place[order] = np.arange(len(order), dtype=order.dtype)
  common = _common_prefixes(order[:-1], order[1:], ranks)
  # An upper bound on the match at each position of a: its longest prefix that occurs anywhere in b,
  # and at most the characters that are left in a.
  room = np.minimum(_longest_in_b(order, ranks, n)[place[:n]], np.arange(n, 0, -1))
  return _Search(
    a=a,
    b=b,
    place_a=place[:n],
    place_b=place[n + 1 : n + 1 + m],
    common=common,
    boxes={0: Box(0, n, 0, m)},
    blocks=[],
    room_a=room,
    room_b=np.arange(m, 0, -1),
    low_b=np.zeros(n, np.int64),
    high_b=np.full(n, m),
    box_a=np.zeros(n, np.int64),
  )


def _joined(codes_a: np.ndarray, codes_b: np.ndarray, autojunk: bool) -> np.ndarray:
  """Returns both texts as one array of codes, with a mark after each text.

  Codes are dense from 2 on; the marks are 1 and 0. Characters that autojunk ignores get one code in
  a and another in b, so that they match nothing.
  """
  _, dense = np.unique(np.concatenate([codes_a, codes_b]), return_inverse=True)
  dense_a, dense_b = dense[: len(codes_a)] + 2, dense[len(codes_a) :] + 2
  # The rule of SequenceMatcher.__chain_b: popular are characters with over 1 % of a long b, plus 1.
  if autojunk and len(codes_b) >= 200:
    counts = np.bincount(dense_b, minlength=dense.max() + 3)
    popular = counts > len(codes_b) // 100 + 1
    unlike = len(popular)
    dense_a = np.where(popular[dense_a], unlike, dense_a)
    dense_b = np.where(popular[dense_b], unlike + 1, dense_b)
  return np.concatenate([dense_a, [1], dense_b, [0]])


def _suffix_array(text: np.ndarray, longest: int) -> tuple[np.ndarray, list[np.ndarray]]:
  """Returns the suffix array and its rank arrays by prefix doubling.

  Args:
    text: codes, int array [size].
    longest: prefixes are compared up to this length.

  Returns:
    order: the suffixes (their start positions), sorted by at least `longest` characters.
    ranks: ranks[k][i] is the rank of suffix i by its first 2^k characters; equal prefixes share it.
  """
  size = len(text)
  order = np.argsort(text, kind="stable")
  ranks = [_ranks(text, order)]
  length = 1
  while length < longest and ranks[-1].max() < size - 1:
    # Rank by 2L characters: (rank of the first L, rank of the L after them). 0 marks suffixes
    # that end before; the pair is packed into one sortable integer.
    second = np.zeros(size, np.int64)
    second[:-length] = ranks[-1][length:] + 1
    keys = ranks[-1] * (size + 1) + second
    order = np.argsort(keys, kind="stable")
    ranks.append(_ranks(keys, order))
    length *= 2
  return order, ranks


def _ranks(keys: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Returns for each position the number of distinct smaller keys; `order` sorts the keys."""
  in_order = keys[order]
  ranks = np.zeros(len(keys), np.int64)
  ranks[order[1:]] = np.cumsum(in_order[1:] != in_order[:-1])
  return ranks


def _common_prefixes(left: np.ndarray, right: np.ndarray, ranks: list[np.ndarray]) -> np.ndarray:
  """Returns the lengths of the common prefixes of pairs of suffixes, exact up to `longest`.

  The length is built bit by bit from the largest power of two, like a binary search: equal ranks[k]
  means that the next 2^k characters agree.
  """
  length = np.zeros(len(left), np.int64)
  for k in reversed(range(len(ranks))):
    # The end mark occurs once, so no common prefix contains it and the index stays in range.
    length += (ranks[k][left + length] == ranks[k][right + length]) * (1 << k)
  return length


def _longest_in_b(order: np.ndarray, ranks: list[np.ndarray], n: int) -> np.ndarray:
  """Returns for each suffix, in suffix-array order, its longest prefix that occurs in b.

  The longest common prefix with any suffix of b is the one with the nearest suffix of b before or
  after it in the suffix array.
  """
  size = len(order)
  in_b = order > n  # suffixes that start in b
  index = np.arange(size)
  # Index of the nearest suffix of b before and after each entry (-1 and `size` if there is none).
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
  """The state of the search. Positions count from the start of their own text.

  Attributes:
    a, b: the texts, of n and m characters.
    place_a, place_b: int [n], [m]: index of each position's suffix in the suffix array.
    common: int [n + m + 1], the LCP array: common prefix of the suffixes with indices r and r + 1.
    boxes: {number: box}, the parts that are not matched yet.
    blocks: found so far.
    room_a: int [n]: upper bound on a match that starts here; 0 if no match can.
    room_b: int [m]: characters up to the end of the box; 0 outside the boxes.
    low_b, high_b, box_a: int [n]: for each position of a, its box's range in b and its box's
      number.
  """

  a: str
  b: str
  place_a: np.ndarray
  place_b: np.ndarray
  common: np.ndarray
  boxes: dict[int, Box]
  blocks: list[Block]
  room_a: np.ndarray
  room_b: np.ndarray
  low_b: np.ndarray
  high_b: np.ndarray
  box_a: np.ndarray


class _Candidates(NamedTuple):
  """Positions in a, ascending, at which a match of `length` starts, with its occurrences in b.

  The occurrences of a[i] are places[first[i] : last[i] + 1]. `places` has positions in b, sorted by
  substring class, then by position.
  """

  length: int
  a: np.ndarray
  first: np.ndarray
  last: np.ndarray
  places: np.ndarray


def _longest(search: _Search) -> _Candidates | None:
  """Returns the candidates of the greatest length that has any, or None.

  Lengths are tried downwards in doubling steps (1, 3, 7, ... below the bound), then by bisection:
  blocks are usually close to the bound.
  """
  high, step = int(search.room_a.max()), 0
  length = high
  while True:
    if length <= 0:
      return None
    best = _candidates(search, length)
    if best:
      break
    # `_candidates` lowered `room_a` at positions without a match, which may lower the bound
    # further.
    high = min(length - 1, int(search.room_a.max()))
    length = max(high - step, min(high, 1))
    step = 2 * step + 1
  # Invariant: `low` has candidates (`best`), and no length above `high` has any.
  low = length
  while low < high:
    middle = (low + high + 1) // 2
    found = _candidates(search, middle)
    low, high, best = (middle, high, found) if found else (low, middle - 1, best)
  return best


def _candidates(search: _Search, length: int) -> _Candidates | None:
  """Returns the candidates of one length, or None; lowers room_a at positions without a match."""
  a = np.flatnonzero(search.room_a >= length)
  b = np.flatnonzero(search.room_b >= length)
  # Adjacent suffixes with a common prefix of at least `length` belong to one class.
  classes = np.concatenate(
    [np.zeros(1, np.int32), np.cumsum(search.common < length, dtype=np.int32)]
  )
  # One sorted array answers all queries: key = class * stride + position in b, so that the
  # positions of a class are contiguous and ascending, and `keys % stride` recovers them.
  stride = len(search.b) + 1
  keys = np.sort(classes[search.place_b[b]] * np.int64(stride) + b)
  wanted = classes[search.place_a[a]] * np.int64(stride)
  # An occurrence must be inside the box: low_b <= j and j + length <= high_b.
  first = np.searchsorted(keys, wanted + search.low_b[a])
  last = np.searchsorted(keys, wanted + search.high_b[a] - length, side="right") - 1
  found = first <= last
  search.room_a[a[~found]] = length - 1
  if not found.any():
    return None
  return _Candidates(length, a[found], first[found], last[found], keys % stride)


def _take_blocks(search: _Search, candidates: _Candidates) -> None:
  """Takes all blocks of the candidates' length and splits their boxes."""
  numbers = search.box_a[candidates.a]
  starts = np.flatnonzero(np.diff(numbers, prepend=-1))  # candidates of one box are contiguous
  for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)]):
    _take_in_box(search, int(numbers[start]), candidates, start, stop)
  # No block of this length is left anywhere.
  np.minimum(search.room_a, candidates.length - 1, out=search.room_a)


def _take_in_box(
  search: _Search, number: int, candidates: _Candidates, start: int, stop: int
) -> None:
  """Takes the blocks of one box from left to right; candidates start..stop belong to it.

  `box` shrinks from the left: after a block, it is the remainder to the right of it, in a and in b,
  and the part to its left becomes another box.
  """
  box = search.boxes.pop(number)
  search.room_b[box.b_low : box.b_high] = 0
  a, first, last = (x[start:stop] for x in (candidates.a, candidates.first, candidates.last))
  last_b = candidates.places[last]
  at = 0
  # The next candidate with an occurrence at or after box.b_low: its last occurrence decides.
  while (at := _next_at_least(last_b, at, box.b_low)) < len(a):
    places = candidates.places[first[at] : last[at] + 1]
    j = int(places[0])  # the earliest occurrence in b that is still inside the box
    if j < box.b_low:
      j = int(places[np.searchsorted(places, box.b_low)])
    i, j, size = _extended(search, box, int(a[at]), j, candidates.length)
    _keep(search, Box(box.a_low, i, box.b_low, j))
    search.room_a[i : i + size] = 0
    search.blocks.append(Block(i, j, size))
    box = Box(i + size, box.a_high, j + size, box.b_high)
    at += int(np.searchsorted(a[at:], box.a_low))  # skips candidates inside the block just taken
  _keep(search, box)


def _next_at_least(values: np.ndarray, at: int, low: int) -> int:
  """Returns the first index >= `at` with a value of at least `low`, or len(values).

  Looks at windows of doubling width: most answers are near, and a scan in Python would be slow.
  """
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
  """Returns (i, j, size) of a block extended both ways by characters that autojunk ignored."""
  a, b = search.a, search.b
  while i > box.a_low and j > box.b_low and a[i - 1] == b[j - 1]:
    i, j, size = i - 1, j - 1, size + 1
  return i, j, size + _common_prefix(search, Box(i + size, box.a_high, j + size, box.b_high))


def _common_prefix(search: _Search, box: Box) -> int:
  """Returns the length of the common prefix of a box's two parts."""
  length = 0
  for x, y in zip(range(box.a_low, box.a_high), range(box.b_low, box.b_high)):
    if search.a[x] != search.b[y]:
      break
    length += 1
  return length


def _keep(search: _Search, box: Box) -> None:
  """Adds a box to the search, unless one of its parts is empty."""
  part_a, part_b = slice(box.a_low, box.a_high), slice(box.b_low, box.b_high)
  width_a, width_b = box.a_high - box.a_low, box.b_high - box.b_low
  if width_a == 0 or width_b == 0:
    search.room_a[part_a] = 0
    return
  number = box.a_low  # unique, because the boxes are disjoint in a
  search.boxes[number] = box
  # Bounds from before the split remain valid; they now also end with the box.
  search.room_a[part_a] = np.minimum(search.room_a[part_a], np.arange(width_a, 0, -1))
  search.room_b[part_b] = np.arange(width_b, 0, -1)
  search.low_b[part_a], search.high_b[part_a] = box.b_low, box.b_high
  search.box_a[part_a] = number
