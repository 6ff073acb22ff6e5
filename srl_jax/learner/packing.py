"""Groups -> rows of fixed size, with each prompt once and its responses behind it.

A row is a line of t tokens that holds several groups; segments tell the groups apart, branches the
responses of a group (policy.attention.Packed). Which tokens are trained stands beside it: the
log-prob of token targets_bs is read from the hidden state at place sources_bs, so all responses of
a group read their first token from the one last token of their prompt. How attention can be spared
work stands beside it too: lines for kernels, blocks for plain XLA (policy.attention.Packed).
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from srl_jax.data.batches import bucket
from srl_jax.learner.grpo import token_shares


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
  """b rows of t tokens, and what is trained of each, in the first places of s (= t).

  int32 and float32; padding is 0. From lines_bml on: see policy.attention.Packed.
  """

  tokens_bt: np.ndarray
  positions_bt: np.ndarray
  segments_bt: np.ndarray
  branches_bt: np.ndarray
  sources_bs: np.ndarray
  targets_bs: np.ndarray
  advantages_bs: np.ndarray
  shares_bs: np.ndarray  # share of the loss; 0 marks padding
  sampler_logprobs_bs: np.ndarray
  lines_bml: np.ndarray | None = None
  copies_btg: np.ndarray | None = None
  prompts_bsp: np.ndarray | None = None
  responses_bsgr: np.ndarray | None = None
  homes_bt: np.ndarray | None = None

  def layout(self) -> tuple:
    """The fields that attention.Packed has behind its first three."""
    return self[9:]


WELL_FILLED = 0.9  # share of a row's places; see _pack_lines
CUT_WORTH = 2  # tokens of responses for each token of a prompt that is computed once more


def pack(
  groups: Sequence[PackedGroup],
  *,
  tokens_per_device: int,
  shards: int,
  aggregate: str,
  max_tokens: int,
  lines: bool = False,
) -> list[Rows]:
  """Packs groups into micro-batches of a handful of shapes.

  Args:
    groups: what one optimiser step trains on.
    tokens_per_device: most tokens of a device's part of a micro-batch.
    shards: devices that the rows are cut over (data x fsdp).
    aggregate, max_tokens: see grpo.token_shares; taken over all the groups.
    lines: lay rows out for attention kernels (ModelConfig.attention other than xla); without, they
      are laid out in blocks where that is less work than masking all pairs of a row.

  Returns:
    Micro-batches; their sums over shares_bs are 1 in all.

  Raises ValueError when a prompt and one of its responses are longer than tokens_per_device.
  """
  lengths = np.array([len(r.token_ids) for group in groups for r in group.responses])
  shares = iter(token_shares(lengths, aggregate, max_tokens).tolist())
  units = []
  for group in groups:
    units += _split(group, [next(shares) for _ in group.responses], tokens_per_device)
  if lines:
    # Of whole groups: how they are cut differs from batch to batch, the compiled g must not.
    g = max(len(group.responses) for group in groups)
    return _pack_lines(units, tokens_per_device, shards, g)
  t = min(tokens_per_device, bucket(max(group.size() for group, _ in units)))
  # Cut where a row is all that fits a device: short rows stand side by side anyway.
  rows = [_row(bin_, t) for bin_ in _first_fit(units, t, cut=t == tokens_per_device)]
  size = _rows_at_a_time(len(rows), max(1, tokens_per_device // t), shards)
  return list(map(_fewer_pairs, _cut(rows, size)))


def _cut(rows: list[Rows], size: int) -> list[Rows]:
  """Micro-batches of `size` rows each; what is missing of the last is padding."""
  rows = rows + [Rows(*map(np.zeros_like, rows[0][:9]))] * (-len(rows) % size)
  parts = (zip(*rows[i : i + size]) for i in range(0, len(rows), size))
  return [Rows(*(np.stack(x) for x in part if x[0] is not None)) for part in parts]


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
    for part in _cut([_row(bin_, t) for bin_ in bins[:full]], shards) if full else []:
      batches.append(_lay_out(part, l, g))
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
  """Rows with their lines of l places and the copies of each token, g at most."""
  units = list(_units(rows))
  lines = [0] * len(rows.tokens_bt)
  for row, _, _, responses in units:
    lines[row] += len(responses)
  m = line_count(max(lines))
  b, t = rows.tokens_bt.shape
  lines_bml = np.full((b, m, l), -1, np.int32)
  copies_btg = np.full((b, t, g), -1, np.int32)
  taken = [0] * b
  for row, _, prompt, responses in units:
    for i, response in enumerate(responses):
      line, taken[row] = taken[row], taken[row] + 1
      both = np.concatenate([prompt, response])
      lines_bml[row, line, : len(both)] = both
      at = line * l + np.arange(len(both))
      copies_btg[row, prompt, i] = at[: len(prompt)]
      copies_btg[row, response, 0] = at[len(prompt) :]
  return rows._replace(lines_bml=lines_bml, copies_btg=copies_btg)


def _fewer_pairs(rows: Rows) -> Rows:
  """Rows in blocks if far fewer pairs of tokens meet in attention than under a mask."""
  blocks = in_blocks(rows)
  s, p = blocks.prompts_bsp.shape[1:]
  g, r = blocks.responses_bsgr.shape[2:]
  pairs = s * (p * p + g * r * (p + r))
  return blocks if pairs < 0.75 * rows.tokens_bt.shape[1] ** 2 else rows


def in_blocks(rows: Rows) -> Rows:
  """Rows with the places of their prompts and responses."""
  units = list(_units(rows))
  s = max(segment for _, segment, _, _ in units) + 1
  p, g = bucket(max(len(prompt) for _, _, prompt, _ in units)), max(len(u[3]) for u in units)
  r = bucket(max(len(response) for unit in units for response in unit[3]))
  b, t = rows.tokens_bt.shape
  prompts_bsp = np.full((b, s, p), -1, np.int32)
  responses_bsgr = np.full((b, s, g, r), -1, np.int32)
  homes_bt = np.full((b, t), -1, np.int32)
  for row, segment, prompt, responses in units:
    prompts_bsp[row, segment, : len(prompt)] = prompt
    homes_bt[row, prompt] = segment * p + np.arange(len(prompt))
    for i, response in enumerate(responses):
      responses_bsgr[row, segment, i, : len(response)] = response
      homes_bt[row, response] = s * p + (segment * g + i) * r + np.arange(len(response))
  return rows._replace(prompts_bsp=prompts_bsp, responses_bsgr=responses_bsgr, homes_bt=homes_bt)


def _units(rows: Rows):
  """(row, which in the row, places of the prompt, places of each response) of all groups."""
  for row, (segments, branches) in enumerate(zip(rows.segments_bt, rows.branches_bt)):
    for segment in range(segments.max()):
      places = np.flatnonzero(segments == segment + 1)
      branch = branches[places]
      responses = [places[branch == i + 1] for i in range(branch.max())]
      yield row, segment, places[branch == 0], responses


def _rows_at_a_time(rows: int, most: int, shards: int) -> int:
  """Rows of a micro-batch: what fits, or a half or a quarter of it if much would stay empty.

  `most` is what fits on each of the `shards` devices.
  """
  sizes = [max(1, most // part) * shards for part in (1, 2, 4)]
  filled = lambda size: rows / (-(-rows // size) * size)
  return next((size for size in sizes if filled(size) >= 0.8), max(sizes, key=filled))


def _split(group, shares, limit):
  """The group as one or more (group, shares) of at most `limit` tokens, the prompt in each."""
  parts, room = [], 0
  for response, share in zip(group.responses, shares):
    need = len(response.token_ids)
    if len(group.prompt_ids) + need > limit:
      raise ValueError(
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


def _row(units, t) -> Rows:
  """One row (rank 1 arrays) of the units."""
  ints = np.zeros((4, t), np.int32)
  scored = np.zeros((2, t), np.int32)
  floats = np.zeros((3, t), np.float32)
  tokens, positions, segments, branches = ints
  sources, targets = scored
  advantages, shares, sampler = floats
  at = done = 0
  for segment, (group, response_shares) in enumerate(units, 1):
    p = len(group.prompt_ids)
    tokens[at : at + p] = group.prompt_ids
    positions[at : at + p] = np.arange(p)
    segments[at : at + group.size()] = segment
    last = at + p - 1  # the prompt's last token predicts the first of every response
    at += p
    for branch, (response, share) in enumerate(zip(group.responses, response_shares), 1):
      n = len(response.token_ids)
      here, new = slice(at, at + n), slice(done, done + n)
      tokens[here] = targets[new] = response.token_ids
      positions[here] = p + np.arange(n)
      branches[here] = branch
      sources[new] = np.concatenate([[last], at + np.arange(n - 1)])
      advantages[new], shares[new] = response.advantage, share
      if response.sampler_logprobs is not None:
        sampler[new] = response.sampler_logprobs
      at, done = at + n, done + n
  return Rows(*ints, *scored, *floats)
