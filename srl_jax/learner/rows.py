"""Packed rows as arrays: groups that share a row, with each prompt once and its responses after it.

A row of t tokens holds several groups; segments number the groups, branches the responses of a
group (policy.attention.Packed). A row also holds, for every trained token, the index of the hidden
state that predicts it, its label, advantage, loss weight and log-prob under the sampler. All
responses of a group read their first token's log-prob from the one last token of their prompt.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from srl_jax.policy import cpu
from srl_jax.policy.attention import Lines


@dataclasses.dataclass(frozen=True)
class Response:
  """A response to train on.

  Fields: token_ids; sampler_logprobs, one a token (None where nothing was sampled: SFT), both
  exchange.Elsewhere if another process has them; advantage; loss_weight, of each of its tokens in
  the loss of the optimiser step; old_logprobs and reference_logprobs, of its tokens, where the loss
  needs them (scores.with_logprobs).
  """

  token_ids: Sequence[int]
  sampler_logprobs: Sequence[float] | None
  advantage: float
  loss_weight: float = 0.0
  old_logprobs: Sequence[float] | None = None
  reference_logprobs: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class PackedGroup:
  """A prompt and the responses that share it."""

  prompt_ids: Sequence[int]
  responses: Sequence[Response]

  @functools.cached_property
  def _sum_and_longest(self) -> tuple[int, int]:
    # Cached, because packing compares the same groups many times.
    lengths = [len(response.token_ids) for response in self.responses]
    return sum(lengths), max(lengths)

  def size(self) -> int:
    """Tokens of the group, the prompt counted once."""
    return len(self.prompt_ids) + self._sum_and_longest[0]

  def longest(self) -> int:
    """Tokens of the prompt and its longest response."""
    return len(self.prompt_ids) + self._sum_and_longest[1]


class Rows(NamedTuple):
  """b rows of t tokens, and the trained tokens of each row, at the start of its axis s (= t).

  Fields (int32 up to targets_bs, then float32; padding is 0):
    tokens_bt, positions_bt, segments_bt, branches_bt: see policy.attention.Packed.
    hidden_index_bs: index into t of the hidden state that predicts the trained token.
    targets_bs: the trained token.
    advantages_bs: its response's advantage.
    loss_weights_bs: its weight in the loss, see grpo.token_weights; 0 marks padding.
    sampler_logprobs_bs: its log-prob when it was sampled.
    old_logprobs_bs: under the policy before the batch's first optimiser step; None where a batch
      makes one step, in which they are the new ones without their gradient.
    reference_logprobs_bs: under the reference policy; None without a KL term.
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
  old_logprobs_bs: np.ndarray | None = None
  reference_logprobs_bs: np.ndarray | None = None
  layout: Lines | cpu.Blocks | None = None


# ---------------------------------------------------------------------------------- tokens


class Parts(NamedTuple):
  """The prompts (branch 0) and responses (branch 1, 2, ...) of all rows, in the order of the rows.

  Fields, one entry for each part: row; segment and branch, as in attention.Packed; length;
  advantage and loss_weight, of a response; token_ids; the response, None for a prompt.
  """

  row: Sequence[int]
  segment: Sequence[int]
  branch: Sequence[int]
  length: Sequence[int]
  advantage: Sequence[float]
  loss_weight: Sequence[float]
  token_ids: Sequence[Sequence[int]]
  response: Sequence[Response | None]


def fill_rows(
  bins: Sequence[Sequence[PackedGroup]], t: int, logprobs: Sequence[str] = ("sampler_logprobs",)
) -> Rows:
  """Returns a row of t tokens for each bin of groups.

  All tokens are handled at once, with arrays of one entry for each part (a prompt or a response)
  and arrays of one entry for each token. `part` is the part of each token, so `x[part]` spreads an
  array over parts to one over tokens.

  logprobs: the fields of a Response with log-probs, which all of the step's responses have.
  """
  rows = _empty_rows(len(bins), t)
  for field in logprobs:
    rows = rows._replace(**{f"{field}_bs": np.zeros((len(bins), t), np.float32)})
  if not any(bins):
    return rows
  parts = Parts(*zip(*_parts(bins)))
  row, segment, branch, length = map(np.array, parts[:4])
  part = np.repeat(np.arange(len(length)), length)  # e.g. lengths 2, 3 -> 0 0 1 1 1
  end = length.cumsum()  # of each part, among all tokens
  offset = np.arange(len(part)) - (end - length)[part]  # of a token in its part
  column = _count_in_row(row[part])
  # The prompt of each part: the last part before it with branch 0.
  prompt = np.maximum.accumulate(np.where(branch == 0, np.arange(len(branch)), 0))
  tokens = np.concatenate([np.asarray(ids, np.int32) for ids in parts.token_ids])

  # Tokens and their coordinates: (row, column) of the packed arrays [b, t].
  at = row[part], column
  rows.tokens_bt[at] = tokens
  # Positions of a response continue those of its prompt.
  rows.positions_bt[at] = offset + np.where(branch > 0, length[prompt], 0)[part]
  rows.segments_bt[at] = segment[part]
  rows.branches_bt[at] = branch[part]

  # A token is predicted by the one before it, the first of every response by its prompt's last.
  last_column = column[end - 1]
  predicted_by = np.where(offset == 0, last_column[prompt][part], column - 1)
  # Trained tokens, in the order of their row, move to the start of the axis s.
  trained = branch[part] > 0
  part = part[trained]
  at = row[part], _count_in_row(row[part])
  rows.hidden_index_bs[at] = predicted_by[trained]
  rows.targets_bs[at] = tokens[trained]
  rows.advantages_bs[at] = np.array(parts.advantage)[part]
  rows.loss_weights_bs[at] = np.array(parts.loss_weight)[part]
  responses = [response for response in parts.response if response]
  for field in logprobs:
    values = [np.asarray(getattr(response, field), np.float32) for response in responses]
    getattr(rows, f"{field}_bs")[at] = np.concatenate(values)
  return rows


def _empty_rows(b: int, t: int) -> Rows:
  ints = lambda: np.zeros((b, t), np.int32)
  floats = lambda: np.zeros((b, t), np.float32)
  return Rows(
    tokens_bt=ints(),
    positions_bt=ints(),
    segments_bt=ints(),
    branches_bt=ints(),
    hidden_index_bs=ints(),
    targets_bs=ints(),
    advantages_bs=floats(),
    loss_weights_bs=floats(),
    sampler_logprobs_bs=floats(),
  )


def _parts(bins: Sequence[Sequence[PackedGroup]]):
  """Yields the fields of Parts for every prompt and response."""
  for row, groups in enumerate(bins):
    for segment, group in enumerate(groups, start=1):
      yield row, segment, 0, len(group.prompt_ids), 0.0, 0.0, group.prompt_ids, None
      for branch, response in enumerate(group.responses, start=1):
        numbers = len(response.token_ids), response.advantage, response.loss_weight
        yield row, segment, branch, *numbers, response.token_ids, response


def _count_in_row(row: np.ndarray) -> np.ndarray:
  """Counts the earlier tokens in the same row, for each token; `row` is sorted, [tokens]."""
  return np.arange(len(row)) - np.searchsorted(row, row)


# ---------------------------------------------------------------------------------- layouts


def with_lines(rows: Rows, m: int, l: int, g: int) -> Rows:
  """Returns the rows with attention.Lines: m lines of l tokens, at most g copies of a token.

  A line is a prompt and one of its responses, the form in which attention kernels need a sequence.
  A prompt's token thus has a copy in the line of each response of its group; a response's token
  has one.
  """
  row, column = np.nonzero(rows.segments_bt)
  segment, branch = rows.segments_bt[row, column] - 1, rows.branches_bt[row, column]
  position = rows.positions_bt[row, column]  # in its line as in its sequence
  b, t = rows.tokens_bt.shape
  # Branches count from 1, so the largest branch of a group is its number of responses.
  responses = np.zeros((b, segment.max(initial=0) + 1), int)
  np.maximum.at(responses, (row, segment), branch)
  first_line = responses.cumsum(axis=1) - responses  # of a group's first response
  token_index_bml = np.full((b, m, l), -1, np.int32)
  copy_index_btg = np.full((b, t, g), -1, np.int32)

  def write(which, i, copy):
    """Writes tokens into the line of response i of their group, as their copy of that number."""
    row_n, column_n, position_n = row[which], column[which], position[which]
    line_n = first_line[row_n, segment[which]] + i
    token_index_bml[row_n, line_n, position_n] = column_n
    copy_index_btg[row_n, column_n, copy] = line_n * l + position_n

  write(branch > 0, branch[branch > 0] - 1, 0)
  # Copy i of a prompt is in the line of the group's response i.
  for i in range(responses.max()):
    write((branch == 0) & (responses[row, segment] > i), i, i)
  return rows._replace(layout=Lines(token_index_bml, copy_index_btg))
