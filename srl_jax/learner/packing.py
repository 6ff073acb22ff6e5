"""Which groups share a row, and which rows a micro-batch; it only carries the groups' numbers."""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from srl_jax.data.batches import bucket
from srl_jax.errors import UserError
from srl_jax.learner.rows import PackedGroup, Rows, fill_rows, line_bucket, with_blocks, with_lines

WELL_FILLED = 0.9  # share of a row's tokens; see _pack_lines
CUT_WORTH = 2  # tokens of responses for each token of a prompt that is computed once more

Bin = list[PackedGroup]  # the groups of a row


def pack(
  groups: Sequence[PackedGroup],
  *,
  tokens_per_device: int,
  shards: int,
  layout: str | None,
) -> list[Rows]:
  """Packs groups into micro-batches of a handful of shapes.

  Args:
    groups: what one optimiser step trains on.
    tokens_per_device: most tokens of a device's part of a micro-batch.
    shards: devices that the rows are sharded over (data x fsdp).
    layout: ModelConfig.layout. "lines": attention.Lines, for accelerators. "blocks": cpu.Blocks
      where that is less work than masking all pairs of a row, else None. None: no layout.

  Raises UserError when a prompt and one of its responses are longer than tokens_per_device.
  """
  parts = []
  for group in groups:
    parts += _split(group, tokens_per_device)
  if layout == "lines":
    # Of whole groups: how they are cut differs from batch to batch, the compiled g must not.
    g = max(len(group.responses) for group in groups)
    return _pack_lines(parts, tokens_per_device, shards, g)
  t = min(tokens_per_device, bucket(max(group.size() for group in parts)))
  # Groups are cut only where a device holds a single row: several short rows fit it anyway.
  bins = _first_fit(parts, t, cut=t == tokens_per_device)
  size = _rows_at_a_time(len(bins), max(1, tokens_per_device // t), shards)
  batches = []
  for part in _micro_batches(bins, size):
    rows = fill_rows(part, t, size)
    batches.append(with_blocks(rows) if layout == "blocks" else rows)
  return batches


def _micro_batches(bins: list[Bin], size: int) -> list[list[Bin]]:
  """The bins of each micro-batch of `size` rows."""
  return [bins[i : i + size] for i in range(0, len(bins), size)]


def _pack_lines(groups: Sequence[PackedGroup], t: int, shards: int, g: int) -> list[Rows]:
  """Micro-batches of one row of t tokens a device, groups of similar length together.

  A micro-batch's lines are as long as its longest. Groups that would not fill the rows of a
  micro-batch of their own length join those of the next length.
  """
  of_length, batches = {}, []
  for group in sorted(groups, key=PackedGroup.longest):
    of_length.setdefault(line_bucket(group.longest()), []).append(group)
  left = []
  for l, same in sorted(of_length.items()):
    bins = _first_fit(left + same, t, cut=True)
    bins.sort(key=_tokens, reverse=True)
    full = len(bins)
    if l < max(of_length):
      full = sum(_tokens(bin_) >= WELL_FILLED * t for bin_ in bins) // shards * shards
    left = sum(bins[full:], [])
    for part in _micro_batches(bins[:full], shards):
      batches.append(with_lines(fill_rows(part, t, shards), l, g))
  return batches


def _tokens(groups: Bin) -> int:
  return sum(group.size() for group in groups)


def _rows_at_a_time(rows: int, most: int, shards: int) -> int:
  """Rows of a micro-batch: what fits, or a half or a quarter of it if much would stay empty.

  `most` is what fits on each of the `shards` devices.
  """
  sizes = [max(1, most // part) * shards for part in (1, 2, 4)]
  filled = lambda size: rows / (-(-rows // size) * size)  # the last micro-batch may be short
  return next((size for size in sizes if filled(size) >= 0.8), max(sizes, key=filled))


def _split(group: PackedGroup, limit: int) -> list[PackedGroup]:
  """The group as one or more of at most `limit` tokens, the prompt in each."""
  if group.size() <= limit:
    return [group]
  parts, room = [], 0
  for response in group.responses:
    need = len(response.token_ids)
    if len(group.prompt_ids) + need > limit:
      raise UserError(
        f"batch.tokens_per_device: {limit} is less than a prompt of {len(group.prompt_ids)} tokens "
        f"and its response of {need}; raise it, or lower data.max_prompt_tokens or "
        "rollout.max_tokens"
      )
    if need > room:
      parts.append([])
      room = limit - len(group.prompt_ids)
    parts[-1].append(response)
    room -= need
  return [PackedGroup(group.prompt_ids, responses) for responses in parts]


def _first_fit(groups: Sequence[PackedGroup], t: int, cut: bool) -> list[Bin]:
  """Groups in bins of t tokens, the longest first, each in the first bin with room.

  With `cut`, a group that fits nowhere leaves as many responses as it can in the emptiest bin, if
  they outweigh the second copy of the prompt that this costs.
  """
  bins, rooms = [], []
  longest_first = lambda group: -group.size()
  waiting = sorted(groups, key=longest_first)
  while waiting:
    group = waiting.pop(0)
    fits = np.flatnonzero(np.array(rooms) >= group.size())
    index = int(fits[0]) if len(fits) else None
    if index is None and cut and rooms:
      emptiest = int(np.argmax(rooms))
      taken, rest = _cut_to(group, rooms[emptiest])
      if taken:
        group, index = taken, emptiest
        bisect.insort(waiting, rest, key=longest_first)
    if index is None:
      index = len(bins)
      bins.append([])
      rooms.append(t)
    bins[index].append(group)
    rooms[index] -= group.size()
  return bins


def _cut_to(group: PackedGroup, room: int) -> tuple[PackedGroup | None, PackedGroup]:
  """(The responses that fit into the room, the rest), or (None, the group) if few would fit."""
  taken, left, room = [], [], room - len(group.prompt_ids)
  for response in sorted(group.responses, key=lambda response: -len(response.token_ids)):
    fits = len(response.token_ids) <= room
    (taken if fits else left).append(response)
    room -= len(response.token_ids) * fits
  part = lambda responses: dataclasses.replace(group, responses=responses)
  if part(taken).size() < (CUT_WORTH + 1) * len(group.prompt_ids):
    return None, group
  return part(taken), part(left)
