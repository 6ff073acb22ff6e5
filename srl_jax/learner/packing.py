"""Groups -> rows of fixed size, with each prompt once and its responses behind it.

A row of t tokens holds several groups; segments number the groups, branches the responses of a
group (policy.attention.Packed). A row also holds, for every trained token, the index of the hidden
state that predicts it, its label, advantage, loss weight and log-prob under the sampler. All
responses of a group read their first token's log-prob from the one last token of their prompt. A
layout (attention.Lines for kernels, cpu.Blocks on CPUs) holds the indices by which attention skips
pairs of tokens that do not see each other.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from srl_jax.data.batches import bucket
from srl_jax.errors import UserError
from srl_jax.learner.grpo import token_shares
from srl_jax.policy import cpu
from srl_jax.policy.attention import Lines


@dataclasses.dataclass(frozen=True)
class Response:
  """A response to train on.

  Fields: token_ids; sampler_logprobs, one a token (or None where nothing was sampled: SFT);
  advantage.
  """

  token_ids: Sequence[int]
  sampler_logprobs: Sequence[float] | None
  advantage: float


@dataclasses.dataclass(frozen=True)
class PackedGroup:
  """A prompt and the responses that share it."""

  prompt_ids: Sequence[int]
  responses: Sequence[Response]

  def size(self) -> int:
    """Tokens of the group, the prompt counted once."""
    return len(self.prompt_ids) + sum(len(r.token_ids) for r in self.responses)

  def line(self) -> int:
    """Tokens of the prompt and its longest response."""
    return len(self.prompt_ids) + max(len(r.token_ids) for r in self.responses)


class Rows(NamedTuple):
  """b rows of t tokens, and the trained tokens of each, which come first in s (= t).

  Fields (int32 up to targets_bs, then float32; padding is 0):
    tokens_bt, positions_bt, segments_bt, branches_bt: see policy.attention.Packed.
    hidden_index_bs: index into t of the hidden state that predicts the trained token.
    targets_bs: the trained token.
    advantages_bs: its response's advantage.
    loss_weights_bs: its weight in the loss, see grpo.token_shares; 0 marks padding.
    sampler_logprobs_bs: its log-prob when it was sampled.
    layout: policy.attention.Packed's, or None.
  """

  tokens_bt: np.ndarray
  positions_bt: np.ndarray
  segments_bt: np.ndarray
  branches_bt: np.ndarray
  hidden_index_bs: np.ndarray
  targets_bs: np.ndarray
  advantages_bs: np.ndarray
  loss_weights_bs: np.ndarray
  sampler_logprobs_bs: np.ndarray
  layout: Lines | cpu.Blocks | None = None


WELL_FILLED = 0.9  # share of a row's places; see _pack_lines
CUT_WORTH = 2  # tokens of responses for each token of a prompt that is computed once more


def pack(
  groups: Sequence[PackedGroup],
  *,
  tokens_per_device: int,
  shards: int,
  aggregate: str,
  max_tokens: int,
  layout: str | None,
) -> list[Rows]:
  """Packs groups into micro-batches of a handful of shapes.

  Args:
    groups: what one optimiser step trains on.
    tokens_per_device: most tokens of a device's part of a micro-batch.
    shards: devices that the rows are cut over (data x fsdp).
    aggregate, max_tokens: see grpo.token_shares; taken over all the groups.
    layout: ModelConfig.layout. "lines": attention.Lines, for accelerators. "blocks": cpu.Blocks
      where that is less work than masking all pairs of a row, else None. None: no layout.

  Returns:
    Micro-batches; their sums over loss_weights_bs are 1 in all.

  Raises UserError when a prompt and one of its responses are longer than tokens_per_device.
  """
  lengths = np.array([len(r.token_ids) for group in groups for r in group.responses])
  shares = iter(token_shares(lengths, aggregate, max_tokens).tolist())
  units = []
  for group in groups:
    units += _split(group, [next(shares) for _ in group.responses], tokens_per_device)
  if layout == "lines":
    # Of whole groups: how they are cut differs from batch to batch, the compiled g must not.
    g = max(len(group.responses) for group in groups)
    return _pack_lines(units, tokens_per_device, shards, g)
  t = min(tokens_per_device, bucket(max(group.size() for group, _ in units)))
  # Cut where a row is all that fits a device: short rows stand side by side anyway.
  bins = _first_fit(units, t, cut=t == tokens_per_device)
  size = _rows_at_a_time(len(bins), max(1, tokens_per_device // t), shards)
  batches = [_rows(part, t, size) for part in _micro_batches(bins, size)]
  if layout == "blocks":
    batches = [_with_blocks(rows) for rows in batches]
  return batches


def _micro_batches(bins: list, size: int) -> list[list]:
  """The bins of each micro-batch of `size` rows."""
  return [bins[i : i + size] for i in range(0, len(bins), size)]


def _pack_lines(units, t, shards, g) -> list[Rows]:
  """Micro-batches of one row of t tokens a device, groups of like length together.

  A kernel's lines are as long as the longest of the micro-batch. Groups that would not fill the
  rows of a micro-batch of their own length go to the next longer ones.
  """
  units = sorted(units, key=lambda unit: unit[0].line())
  of_length, batches = {}, []
  for unit in units:
    of_length.setdefault(line_bucket(unit[0].line()), []).append(unit)
  left = []
  for l, same in sorted(of_length.items()):
    bins = _first_fit(left + same, t, cut=True)
    bins.sort(key=_tokens, reverse=True)
    full = len(bins)
    if l < max(of_length):
      full = sum(_tokens(bin_) >= WELL_FILLED * t for bin_ in bins) // shards * shards
    left = [unit for bin_ in bins[full:] for unit in bin_]
    for part in _micro_batches(bins[:full], shards):
      batches.append(_lay_out(_rows(part, t, shards), l, g))
  return batches


def _tokens(units) -> int:
  return sum(group.size() for group, _ in units)


def line_bucket(length: int) -> int:
  """The compiled length of a line: 128, 256, 384, 512, 768, 1024, 1536, 2048, ..."""
  l = 128
  while l < length:
    l += max(128, (1 << (l.bit_length() - 1)) // 2)
  return l


def line_count(lines: int) -> int:
  """The compiled number of lines of a row: 8, 16, 24, ..., 64, 80, ..., 128, 160, ..., 256, ...

  Multiples of 8, so that few lines are empty. From 64 on steps are an eighth of the next power of
  two: rows of short lines differ by dozens, and each number is a program to compile.
  """
  step = max(8, (1 << (lines - 1).bit_length()) // 8)
  return -(-lines // step) * step


def _lay_out(rows: Rows, l: int, g: int) -> Rows:
  """Rows with attention.Lines of l tokens each, and at most g copies of a token."""
  row, place, segment, branch = _tokens_of(rows)
  position = rows.positions_bt[row, place]  # in its line as in its sequence
  b, t = rows.tokens_bt.shape
  counts_bs = np.zeros((b, segment.max() + 1), int)  # responses of a group
  np.maximum.at(counts_bs, (row, segment), branch)
  firsts_bs = counts_bs.cumsum(axis=1) - counts_bs  # line of a group's first response
  m = line_count(int(counts_bs.sum(axis=1).max()))
  token_index_bml = np.full((b, m, l), -1, np.int32)
  copy_index_btg = np.full((b, t, g), -1, np.int32)

  def write(which, i, copy):
    """Writes tokens into the lines of response i of their group, as their copy of that number."""
    row_n, place_n, position_n = row[which], place[which], position[which]
    line_n = firsts_bs[row_n, segment[which]] + i
    token_index_bml[row_n, line_n, position_n] = place_n
    copy_index_btg[row_n, place_n, copy] = line_n * l + position_n

  write(branch > 0, branch[branch > 0] - 1, 0)
  for i in range(counts_bs.max()):
    write((branch == 0) & (counts_bs[row, segment] > i), i, i)
  return rows._replace(layout=Lines(token_index_bml, copy_index_btg))


def _with_blocks(rows: Rows) -> Rows:
  arrays = rows.positions_bt, rows.segments_bt, rows.branches_bt
  return rows._replace(layout=cpu.blocks_if_cheaper(*arrays, bucket))


def _tokens_of(rows: Rows) -> tuple[np.ndarray, ...]:
  """(row, place in it, group of the row, branch) of every token that is no padding."""
  row, place = np.nonzero(rows.segments_bt)
  return row, place, rows.segments_bt[row, place] - 1, rows.branches_bt[row, place]


def _rows_at_a_time(rows: int, most: int, shards: int) -> int:
  """Rows of a micro-batch: what fits, or a half or a quarter of it if much would stay empty.

  `most` is what fits on each of the `shards` devices.
  """
  sizes = [max(1, most // part) * shards for part in (1, 2, 4)]
  filled = lambda size: rows / (-(-rows // size) * size)
  return next((size for size in sizes if filled(size) >= 0.8), max(sizes, key=filled))


def _split(group, shares, limit):
  """The group as one or more (group, shares) of at most `limit` tokens, the prompt in each."""
  if group.size() <= limit:
    return [(group, shares)]
  parts, room = [], 0
  for response, share in zip(group.responses, shares):
    need = len(response.token_ids)
    if len(group.prompt_ids) + need > limit:
      raise UserError(
        f"batch.tokens_per_device: {limit} is less than a prompt of {len(group.prompt_ids)} tokens "
        f"and its response of {need}; raise it, or lower data.max_prompt_tokens or "
        "rollout.max_tokens"
      )
    if need > room:
      parts.append(([], []))
      room = limit - len(group.prompt_ids)
    parts[-1][0].append(response)
    parts[-1][1].append(share)
    room -= need
  return [(PackedGroup(group.prompt_ids, responses), shares) for responses, shares in parts]


def _first_fit(units, t, cut=False):
  """Units dealt into bins of t tokens, the longest first, each into the first bin with room.

  With `cut`, a unit that fits nowhere leaves as many responses as it can in the emptiest bin, if
  they outweigh the second copy of the prompt that this costs.
  """
  bins, rooms = [], []
  longest_first = lambda unit: -unit[0].size()
  waiting = sorted(units, key=longest_first)
  while waiting:
    unit = waiting.pop(0)
    size = unit[0].size()
    place = next((i for i, room in enumerate(rooms) if room >= size), None)
    if place is None and cut and rooms:
      place = int(np.argmax(rooms))
      unit, rest = _cut_to(unit, rooms[place])
      if unit is None:
        unit, place = rest, None
      else:
        bisect.insort(waiting, rest, key=longest_first)
    if place is None:
      place = len(bins)
      bins.append([])
      rooms.append(t)
    bins[place].append(unit)
    rooms[place] -= unit[0].size()
  return bins


def _cut_to(unit, room):
  """(the unit's responses that fit into the room, the rest), or (None, unit) if few would."""
  group, shares = unit
  taken, left, room = [], [], room - len(group.prompt_ids)
  for pair in sorted(zip(group.responses, shares), key=lambda pair: -len(pair[0].token_ids)):
    fits = len(pair[0].token_ids) <= room
    (taken if fits else left).append(pair)
    room -= len(pair[0].token_ids) * fits
  if sum(len(response.token_ids) for response, _ in taken) < CUT_WORTH * len(group.prompt_ids):
    return None, unit
  part = lambda pairs: (PackedGroup(group.prompt_ids, [r for r, _ in pairs]), [s for _, s in pairs])
  return part(taken), part(left)


def _rows(bins, t: int, b: int) -> Rows:
  """b rows of t tokens, one for each bin of units; what is missing is padding.

  Everything is computed for all tokens at once, which stand one behind the other as they will in
  the rows: of each unit the prompt and its responses (`parts`).
  """
  rows = Rows(*np.zeros((6, b, t), np.int32), *np.zeros((3, b, t), np.float32))
  parts = [
    (row, segment, branch, len(ids), advantage, share, ids, logprobs)
    for row, units in enumerate(bins)
    for segment, (group, shares) in enumerate(units, 1)
    for branch, (ids, logprobs, advantage, share) in enumerate(_parts_of(group, shares))
  ]
  *numbers, ids, logprobs = zip(*parts)
  row_n, segment_n, branch_n, length_n, advantage_n, share_n = map(np.array, numbers)
  part = np.repeat(np.arange(len(parts)), length_n)
  offset = np.arange(len(part)) - np.repeat(length_n.cumsum() - length_n, length_n)
  row, branch = row_n[part], branch_n[part]
  place = _count_from_row(row)
  prompt_n = np.maximum.accumulate(np.where(branch_n == 0, np.arange(len(parts)), 0))
  last_n = place[length_n.cumsum() - 1]  # place of a part's last token

  rows.tokens_bt[row, place] = tokens = np.fromiter(itertools.chain(*ids), np.int32, len(part))
  rows.positions_bt[row, place] = offset + np.where(branch > 0, length_n[prompt_n][part], 0)
  rows.segments_bt[row, place] = segment_n[part]
  rows.branches_bt[row, place] = branch

  trained = branch > 0
  part, offset, row, place = (x[trained] for x in (part, offset, row, place))
  at = row, _count_from_row(row)
  # The prompt's last token predicts the first of every response.
  rows.hidden_index_bs[at] = np.where(offset == 0, last_n[prompt_n][part], place - 1)
  rows.targets_bs[at] = tokens[trained]
  rows.advantages_bs[at] = advantage_n[part]
  rows.loss_weights_bs[at] = share_n[part]
  if any(map(len, logprobs)):
    rows.sampler_logprobs_bs[at] = np.fromiter(itertools.chain(*logprobs), np.float32, len(part))
  return rows


def _parts_of(group: PackedGroup, shares):
  """(token ids, sampler's log-probs, advantage, share) of the prompt and of each response."""
  yield group.prompt_ids, (), 0.0, 0.0
  for response, share in zip(group.responses, shares):
    logprobs = () if response.sampler_logprobs is None else response.sampler_logprobs
    yield response.token_ids, logprobs, response.advantage, share


def _count_from_row(row: np.ndarray) -> np.ndarray:
  """How many stand before each in its row; `row` is in order."""
  return np.arange(len(row)) - np.searchsorted(row, row)
