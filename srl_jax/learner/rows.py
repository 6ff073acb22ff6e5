"""Packed rows as arrays: groups that share a row, with each prompt once and its responses after it.

A row of t tokens holds several groups; segments number the groups, branches the responses of a
group (policy.attention.Packed). A row also holds, for every trained token, the index of the hidden
state that predicts it, its label, advantage, loss weight and log-prob under the sampler. All
responses of a group read their first token's log-prob from the one last token of their prompt.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from srl_jax.data.batches import bucket
from srl_jax.policy import cpu
from srl_jax.policy.attention import Lines


@dataclasses.dataclass(frozen=True)
class Response:
  """A response to train on.

  Fields: token_ids; sampler_logprobs, one a token (None where nothing was sampled: SFT);
  advantage; loss_weight, of each of its tokens in the loss of the whole batch.
  """

  token_ids: Sequence[int]
  sampler_logprobs: Sequence[float] | None
  advantage: float
  loss_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class PackedGroup:
  """A prompt and the responses that share it."""

  prompt_ids: Sequence[int]
  responses: Sequence[Response]

  def size(self) -> int:
    """Tokens of the group, the prompt counted once."""
    return len(self.prompt_ids) + sum(len(r.token_ids) for r in self.responses)

  def longest(self) -> int:
    """Tokens of the prompt and its longest response."""
    return len(self.prompt_ids) + max(len(r.token_ids) for r in self.responses)


class Rows(NamedTuple):
  """b rows of t tokens, and the trained tokens of each, which come first in s (= t).

  Fields (int32 up to targets_bs, then float32; padding is 0):
    tokens_bt, positions_bt, segments_bt, branches_bt: see policy.attention.Packed.
    hidden_index_bs: index into t of the hidden state that predicts the trained token.
    targets_bs: the trained token.
    advantages_bs: its response's advantage.
    loss_weights_bs: its weight in the loss, see grpo.token_weights; 0 marks padding.
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


# ---------------------------------------------------------------------------------- tokens


def fill_rows(bins: Sequence[Sequence[PackedGroup]], t: int, b: int) -> Rows:
  """b rows of t tokens: one for each bin of groups, the rest padding.

  All tokens are handled at once, in the order in which they will be in the rows. A part is a prompt
  or a response. Arrays that end in _n have an entry for each part, the others one for each token.
  """
  rows = Rows(*np.zeros((6, b, t), np.int32), *np.zeros((3, b, t), np.float32))
  parts = list(_parts(bins))
  *numbers, ids, logprobs = zip(*parts)
  row_n, segment_n, branch_n, length_n, advantage_n, weight_n = map(np.array, numbers)
  part = np.repeat(np.arange(len(parts)), length_n)  # the part of each token
  start_n = length_n.cumsum() - length_n
  offset = np.arange(len(part)) - start_n[part]  # of a token in its part
  row, branch = row_n[part], branch_n[part]
  column = _count_in_row(row)
  # The prompt of each part: the last part before it with branch 0.
  prompt_n = np.maximum.accumulate(np.where(branch_n == 0, np.arange(len(parts)), 0))
  last_column_n = column[length_n.cumsum() - 1]  # of a part's last token

  tokens = np.fromiter(itertools.chain(*ids), np.int32, len(part))
  rows.tokens_bt[row, column] = tokens
  # Positions of a response continue those of its prompt.
  rows.positions_bt[row, column] = offset + np.where(branch > 0, length_n[prompt_n][part], 0)
  rows.segments_bt[row, column] = segment_n[part]
  rows.branches_bt[row, column] = branch

  trained = branch > 0
  part, offset, row, column = (x[trained] for x in (part, offset, row, column))
  at = row, _count_in_row(row)
  # A token is predicted by the one before it; the first of every response by its prompt's last.
  rows.hidden_index_bs[at] = np.where(offset == 0, last_column_n[prompt_n][part], column - 1)
  rows.targets_bs[at] = tokens[trained]
  rows.advantages_bs[at] = advantage_n[part]
  rows.loss_weights_bs[at] = weight_n[part]
  if any(map(len, logprobs)):
    rows.sampler_logprobs_bs[at] = np.fromiter(itertools.chain(*logprobs), np.float32, len(part))
  return rows


def _parts(bins: Sequence[Sequence[PackedGroup]]):
  """Yields (row, segment, branch, length, advantage, loss weight, token ids, log-probs) of every
  prompt (branch 0) and response (branch 1, 2, ...).
  """
  for row, groups in enumerate(bins):
    for segment, group in enumerate(groups, start=1):
      yield row, segment, 0, len(group.prompt_ids), 0.0, 0.0, group.prompt_ids, ()
      for branch, response in enumerate(group.responses, start=1):
        numbers = len(response.token_ids), response.advantage, response.loss_weight
        yield row, segment, branch, *numbers, response.token_ids, response.sampler_logprobs or ()


def _count_in_row(row: np.ndarray) -> np.ndarray:
  """How many tokens of the same row come before each one; `row` is sorted."""
  return np.arange(len(row)) - np.searchsorted(row, row)


# ---------------------------------------------------------------------------------- layouts


def with_lines(rows: Rows, l: int, g: int) -> Rows:
  """Rows with attention.Lines of l tokens each, and at most g copies of a token."""
  row, column = np.nonzero(rows.segments_bt)
  segment, branch = rows.segments_bt[row, column] - 1, rows.branches_bt[row, column]
  position = rows.positions_bt[row, column]  # in its line as in its sequence
  b, t = rows.tokens_bt.shape
  counts_bs = np.zeros((b, segment.max() + 1), int)  # responses of a group
  np.maximum.at(counts_bs, (row, segment), branch)
  first_line_bs = counts_bs.cumsum(axis=1) - counts_bs  # of a group's first response
  m = line_count(int(counts_bs.sum(axis=1).max()))
  token_index_bml = np.full((b, m, l), -1, np.int32)
  copy_index_btg = np.full((b, t, g), -1, np.int32)

  def write(which, i, copy):
    """Writes tokens into the line of response i of their group, as their copy of that number."""
    row_n, column_n, position_n = row[which], column[which], position[which]
    line_n = first_line_bs[row_n, segment[which]] + i
    token_index_bml[row_n, line_n, position_n] = column_n
    copy_index_btg[row_n, column_n, copy] = line_n * l + position_n

  write(branch > 0, branch[branch > 0] - 1, 0)
  for i in range(counts_bs.max()):
    write((branch == 0) & (counts_bs[row, segment] > i), i, i)
  return rows._replace(layout=Lines(token_index_bml, copy_index_btg))


def with_blocks(rows: Rows) -> Rows:
  """Rows with cpu.Blocks where those are less work than a mask over all pairs of a row."""
  arrays = rows.positions_bt, rows.segments_bt, rows.branches_bt
  return rows._replace(layout=cpu.blocks_if_cheaper(*arrays, bucket))


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
