"""Packing: which groups share a row, and which rows form a micro-batch.

The shapes of micro-batches are few and are decided before a run begins (row_shapes), because each
one is a program to compile. `fill` then chooses how many micro-batches of each shape a batch needs,
and packs the groups into them by best fit. Token ids, advantages and weights are copied unchanged.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from srl_jax.data.batches import bucket
from srl_jax.errors import UserError
from srl_jax.learner.rows import PackedGroup, Rows, fill_rows, with_lines
from srl_jax.policy import cpu

LINE_BLOCK = 128  # line lengths are multiples of it, for the attention kernels (kernels.BLOCK)
SHORT_LINE = 0.6  # least line length in the largest shape, as a share of the longest line
MORE_LINES = 1.4  # lines in a row, as a multiple of what it needs at the expected lengths
LINE_TOKENS = 24  # limit of lines x line length in a row, per token that a device may have
FEW = 128  # below so many groups a plan is tried in milliseconds, so every plan may be tried
OVERHEAD = 1 / 32  # fixed cost of a micro-batch, as a share of the cost of the largest one's tokens

# The groups of a row, in the order of their tokens.
Bin = list[PackedGroup]
LOGPROBS = ("sampler_logprobs", "old_logprobs", "reference_logprobs")


class Lengths(NamedTuple):
  """Lengths of a run's sequences, as far as they are known before its first step, in tokens.

  Fields:
    prompt, response: the longest of each.
    line: the longest prompt together with one response.
    samples: responses of a prompt.
    expected: mean tokens that a response adds to a row: its own and its share of the prompt.
    typical: 90 % quantile of `line` over the prompts.
  """

  prompt: int
  response: int
  line: int
  samples: int
  expected: float
  typical: int


class RowShape(NamedTuple):
  """A compiled shape of a micro-batch.

  Fields:
    rows, tokens: rows of each device, tokens of a row.
    line: most tokens of a prompt together with one of its responses.
    places: most responses of a row ("lines") or groups ("blocks"); without a layout any number.
    prompt, response, samples: of a block, as in Lengths.
    layout: "lines" (attention.Lines), "blocks" (cpu.Blocks) or None.
  """

  rows: int
  tokens: int
  line: int
  places: int
  prompt: int
  response: int
  samples: int
  layout: str | None


class MicroBatch(NamedTuple):
  """A micro-batch over all devices: its shape, and the groups of each of its rows."""

  shape: RowShape
  bins: list[Bin]

  def tokens(self) -> int:
    """Its tokens, padding not counted."""
    return sum(group.size() for groups in self.bins for group in groups)


# ---------------------------------------------------------------------------------- shapes


def row_shapes(lengths: Lengths, tokens_per_device: int, layout: str | None) -> list[RowShape]:
  """The shapes of a run's micro-batches, at most three, the largest first.

  The largest has all tokens that a device may have. The middle one, a quarter of it or what the
  longest sequence needs, and the small one, a third of the middle one, hold the rest of a batch. In
  lines, attention's memory is the number of lines times their length, so the largest shape has
  short lines and leaves the longest sequences to the middle one.

  Args:
    tokens_per_device: most tokens of a device's part of a micro-batch.
    layout: ModelConfig.layout. "lines": attention.Lines, for accelerators. "blocks": cpu.Blocks
      where that is less work than masking all pairs of a row, else no layout. None: no layout.
  """
  # Sizes are rounded up to multiples of 32, so that similar runs share compiled programs.
  most, longest = tokens_per_device, min(tokens_per_device, lengths.line)
  middle = min(most, _multiple(max(most // 4, longest), 32))
  small = min(middle, _multiple(middle // 3, 32))
  if layout == "lines":
    # Nine in ten prompts fit the short lines, which have at least SHORT_LINE of the longest length.
    short = min(longest, max(lengths.typical, math.ceil(SHORT_LINE * longest)))
    sizes = (most, short), (middle, longest), (small, min(small, longest))
    shapes = [_in_lines(t, l, lengths, most) for t, l in sizes]
  else:
    blocks = layout == "blocks"
    shapes = [_in_blocks(t, lengths, blocks) for t in (most, middle, small)]
    # Without a layout attention masks all t^2 pairs of a row, so several short rows of `middle`
    # tokens are cheaper than one of `most`.
    if shapes[0].layout is None:
      sizes = middle, min(middle, 2 * small), small
      shapes = [_in_blocks(t, lengths, blocks) for t in sizes]
      shapes[0] = shapes[0]._replace(rows=most // middle)
  return list(dict.fromkeys(shapes))  # short sequences make some of the three equal


def roomiest(shapes: Sequence[RowShape]) -> RowShape:
  """The shape that takes any sequence of the run, so that one program can score all of them."""
  return max(shapes, key=lambda shape: (min(shape.line, shape.tokens), shape.tokens))


def _in_lines(t: int, line: int, lengths: Lengths, most: int) -> RowShape:
  # As many lines as responses are expected in t tokens, within the limit of attention's memory.
  line = _multiple(line, LINE_BLOCK)
  lines = _multiple(math.ceil(MORE_LINES * t / lengths.expected), 8)
  lines = min(lines, max(1, LINE_TOKENS * most // line))
  return RowShape(1, t, line, lines, line, line, lengths.samples, "lines")


def _in_blocks(t: int, lengths: Lengths, blocks: bool) -> RowShape:
  p, r, g = bucket(lengths.prompt), bucket(lengths.response), lengths.samples
  # s groups of g responses fill the row at the expected lengths. Blocks are worth their gathers
  # where they score fewer pairs of tokens than the causal half of t^2.
  s = math.ceil(t / (g * lengths.expected))
  cheaper = cpu.pairs_in_blocks(s, p, g, r) < 0.9 * cpu.causal_pairs(t)
  return RowShape(1, t, t, s, p, r, g, "blocks" if blocks and cheaper else None)


def _multiple(x: int, of: int) -> int:
  """The least multiple of `of` that is at least x."""
  return -(-x // of) * of


def lengths_of(groups: Sequence[PackedGroup]) -> Lengths:
  """The Lengths of groups that are known already."""
  responses = [len(response.token_ids) for group in groups for response in group.responses]
  return Lengths(
    prompt=max(len(group.prompt_ids) for group in groups),
    response=max(responses),
    line=max(map(PackedGroup.longest, groups)),
    samples=max(len(group.responses) for group in groups),
    expected=sum(map(PackedGroup.size, groups)) / len(responses),
    typical=int(np.quantile([group.longest() for group in groups], 0.9, method="higher")),
  )


# ---------------------------------------------------------------------------------- packing


def pack(
  groups: Sequence[PackedGroup], *, tokens_per_device: int, shards: int, layout: str | None
) -> list[Rows]:
  """Packs groups as `fill` does, into shapes that are made for these groups alone."""
  return fill(groups, row_shapes(lengths_of(groups), tokens_per_device, layout), shards)


def fill(groups: Sequence[PackedGroup], shapes: Sequence[RowShape], shards: int) -> list[Rows]:
  """Packs groups as `plan` does; the micro-batches with all their rows, on the host."""
  return list(map(rows_of, plan(groups, shapes, shards)))


def plan(
  groups: Sequence[PackedGroup], shapes: Sequence[RowShape], shards: int
) -> list[MicroBatch]:
  """Packs groups into micro-batches of a run's shapes; of their tokens only the number is read.

  Tried are numbers of micro-batches of each shape. The cheapest ones into which the groups fit are
  taken, as far as bisection finds them.

  Args:
    groups: the groups that one optimiser step trains on.
    shapes: from row_shapes.
    shards: devices that the rows are sharded over (data x fsdp).

  Raises UserError when a prompt and one of its responses are longer than every shape's rows.
  """
  room = max(min(shape.line, shape.tokens) for shape in shapes)
  for group in groups:
    if group.longest() > room:
      raise UserError(_too_long(group, room))
  plans, larger = _plans(groups, shapes, shards)
  low, high, found = 0, len(plans), None
  while low < high:
    # Bisection assumes that a more expensive plan fits wherever a cheaper one does. With few groups
    # this is often false (it may have fewer long rows), so all are tried, the cheapest first.
    half = (low + high) // 2 if len(groups) > FEW else low
    bins = _fit_either_way(groups, plans[half], shards)
    if bins is None:
      low = half + 1
    else:
      high, found = half, (bins, plans[half])
  while found is None:  # no plan fitted: double, triple, ... the rows until one does
    more = next(larger)
    bins = _fit_either_way(groups, more, shards)
    found = bins and (bins, more)
  return _micro_batches(*found, shards)


def _micro_batches(bins: list[Bin], shapes: Sequence[RowShape], shards: int) -> list[MicroBatch]:
  batches = []
  for shape in shapes:
    size = shape.rows * shards
    part, bins = bins[:size], bins[size:]
    if any(part):  # a micro-batch of padding alone costs a pass for no gradient
      batches.append(MicroBatch(shape, part))
  return batches


def rows_of(batch: MicroBatch, bins: Sequence[Bin] | None = None) -> Rows:
  """Rows [rows, shape.tokens] of a micro-batch on the host.

  `bins`: the groups of some of its rows, with all of their tokens; None: of all its rows. Which
  fields are None depends on the whole micro-batch, so that a process whose rows are all padding
  makes the same pytree.
  """
  first = next(groups[0].responses[0] for groups in batch.bins if groups)
  logprobs = [field for field in LOGPROBS if getattr(first, field) is not None]
  shape = batch.shape
  rows = fill_rows(batch.bins if bins is None else bins, shape.tokens, logprobs)
  if shape.layout == "lines":
    return with_lines(rows, shape.places, shape.line, shape.samples)
  if shape.layout == "blocks":
    sizes = shape.places, shape.prompt, shape.samples, shape.response
    arrays = rows.positions_bt, rows.segments_bt, rows.branches_bt
    return rows._replace(layout=cpu.in_blocks(*arrays, *sizes))
  return rows


def _plans(
  groups: Sequence[PackedGroup], shapes: Sequence[RowShape], shards: int
) -> tuple[list[list[RowShape]], Iterator[list[RowShape]]]:
  """(Plans with room for all tokens, the cheapest first; an infinite iterator of larger ones)."""
  large, middle, small = (shapes[min(i, len(shapes) - 1)] for i in range(3))
  sizes = [shape.rows * shape.tokens for shape in (large, middle, small)]
  tokens = sum(map(PackedGroup.size, groups)) / shards
  # Groups with longer lines than the largest shape has need micro-batches of the middle one.
  only_middle = sum(group.size() for group in groups if group.longest() > large.line) / shards
  least = math.ceil(only_middle / sizes[1])
  # Numbers (k, i, j) of large, middle and small micro-batches: for every i and j near the least
  # one, k from just enough tokens to half as many again, for what best fit leaves unused.
  numbers = set()
  for i in range(least, least + least // 2 + 4 + sizes[0] // sizes[1]):
    for j in range(3):
      k = max(0, math.ceil((tokens - i * sizes[1] - j * sizes[2]) / sizes[0]))
      numbers |= {(more, i, j) for more in range(k, k + k // 2 + 2)}
  cost = lambda plan: np.dot(plan, sizes) + sum(plan) * OVERHEAD * sizes[0]
  of = lambda k, i, j: [large] * k + [middle] * i + [small] * j
  plans = [of(*plan) for plan in sorted(numbers, key=lambda plan: (cost(plan), plan))]
  k = math.ceil(tokens / sizes[0])
  return plans, (of(n * k, n * (least + 1), 0) for n in itertools.count(2))


@dataclasses.dataclass
class _Room:
  """The room left in each row of a plan.

  Fields: tokens, places: int [rows], still free; line: int [rows], the longest line that the row
  takes; in_lines: whether places are counted in responses, not in groups.
  """

  tokens: np.ndarray
  places: np.ndarray
  line: np.ndarray
  in_lines: bool

  @classmethod
  def of(cls, plan: Sequence[RowShape], shards: int) -> "_Room":
    rows = [shape for shape in plan for _ in range(shape.rows * shards)]
    places = [shape.places if shape.layout else 2**31 for shape in rows]  # 2^31: no limit
    in_lines = any(shape.layout == "lines" for shape in rows)
    line = [min(shape.line, shape.tokens) for shape in rows]
    return cls(
      np.array([shape.tokens for shape in rows]), np.array(places), np.array(line), in_lines
    )

  def places_of(self, group: PackedGroup) -> int:
    return len(group.responses) if self.in_lines else 1

  def best(self, group: PackedGroup) -> int | None:
    """The fullest row that has room for the group, or None."""
    fits = (self.tokens >= group.size()) & (self.places >= self.places_of(group))
    fits &= self.line >= group.longest()
    return int(np.where(fits, self.tokens, 2**31).argmin()) if fits.any() else None

  def emptiest(self, group: PackedGroup) -> int | None:
    """The row with the most free tokens of those that take lines as long as the group's."""
    fits = (self.places > 0) & (self.line >= group.longest())
    return int(np.where(fits, self.tokens, -1).argmax()) if fits.any() else None

  def take(self, row: int, group: PackedGroup) -> None:
    self.tokens[row] -= group.size()
    self.places[row] -= self.places_of(group)


def _fit_either_way(
  groups: Sequence[PackedGroup], plan: list[RowShape], shards: int
) -> list[Bin] | None:
  """_fit with the largest groups first or, if that fails, mixed."""
  for mixed in (False, True):
    bins = _fit(groups, _Room.of(plan, shards), plan[0].line, mixed)
    if bins is not None:
      return bins
  return None


def _fit(groups: Sequence[PackedGroup], room: _Room, short: int, mixed: bool) -> list[Bin] | None:
  """The groups in the rows of `room`, or None if they do not fit.

  Each goes into the fullest row that has room for it: those with lines longer than `short` first,
  because few rows take them, then the largest. A group that fits nowhere is cut: as many of its
  responses as possible go to the emptiest row, the others wait, with a copy of the prompt. `mixed`
  takes the largest, the smallest, the second largest, ..., because rows of small groups alone run
  out of lines.
  """
  order = lambda group: (group.longest() > short, group.size())
  bins = [[] for _ in room.tokens]
  waiting = sorted(groups, key=order)  # a stack: the next group is popped from the end
  if mixed:
    # Interleaves the larger half, descending, with the smaller half, ascending.
    half, by_size = len(waiting) // 2, list(waiting)
    waiting[::2], waiting[1::2] = by_size[half:][::-1], by_size[:half]
    waiting.reverse()
  while waiting:
    group = waiting.pop()
    row = room.best(group)
    if row is None:
      row = room.emptiest(group)
      if row is None:
        return None
      places = int(room.places[row]) if room.in_lines else len(group.responses)
      group, rest = _cut(group, int(room.tokens[row]), places)
      if group is None:
        return None
      if mixed:
        waiting.append(rest)
      else:  # the rest is smaller, and others may now go before it
        bisect.insort(waiting, rest, key=order)
    bins[row].append(group)
    room.take(row, group)
  return bins


def _cut(group: PackedGroup, tokens: int, places: int) -> tuple[PackedGroup | None, PackedGroup]:
  """(The responses that fit, at most `places`; the rest), or (None, the group) if none does."""
  taken, left, tokens = [], [], tokens - len(group.prompt_ids)
  for response in sorted(group.responses, key=lambda response: -len(response.token_ids)):
    fits = len(response.token_ids) <= tokens and len(taken) < places
    (taken if fits else left).append(response)
    tokens -= len(response.token_ids) * fits
  if not taken:
    return None, group
  return tuple(dataclasses.replace(group, responses=part) for part in (taken, left))


def _too_long(group: PackedGroup, room: int) -> str:
  longest = max(len(response.token_ids) for response in group.responses)
  return (
    f"batch.tokens_per_device: {room} is less than a prompt of {len(group.prompt_ids)} tokens and "
    f"its response of {longest}; raise it, or lower data.max_prompt_tokens or rollout.max_tokens"
  )
