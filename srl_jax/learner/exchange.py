"""Each process's rows of the micro-batches, with token ids that another process may have sampled.

All processes plan the micro-batches, because a plan needs only the lengths of the sequences. Which
rows a device gets does not depend on which process sampled them, so a batch is packed as by one
process. The token ids and log-probs of a plan are then sent once, each to the processes that have
their row: 8 bytes a token through the store of process 0 (hosts.exchange).
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import jax
import numpy as np

from srl_jax import hosts
from srl_jax.learner.packing import MicroBatch, rows_of
from srl_jax.learner.rows import PackedGroup, Response, Rows
from srl_jax.policy.sharding import own_rows, row_processes


@dataclasses.dataclass(frozen=True)
class Elsewhere:
  """Takes the place of `count` token ids or log-probs that only `process` has."""

  process: int
  count: int

  def __len__(self) -> int:
    return self.count


def rows_of_process(plan: Sequence[MicroBatch]) -> list[Rows]:
  """The rows of this process's devices in each micro-batch, on the host; a collective.

  Call it with the mesh set, from one thread on all processes.
  """
  received = _receive(plan)
  rows = []
  for batch in plan:
    bins = []
    for row in own_rows(len(batch.bins)):
      bins.append([_complete(group, received) for group in batch.bins[row]])
    rows.append(rows_of(batch, bins))
  return rows


def _complete(group: PackedGroup, received: dict[int, Response]) -> PackedGroup:
  responses = [received.get(id(response), response) for response in group.responses]
  return dataclasses.replace(group, responses=responses)


def _receive(plan: Sequence[MicroBatch]) -> dict[int, Response]:
  """{id of a response in this process's rows that another has sampled: the whole response}."""
  # The responses in the rows of each process, {id: response}, in the same order on all processes.
  needed_by: dict[int, dict[int, Response]] = defaultdict(dict)
  for batch in plan:
    for groups, processes in zip(batch.bins, row_processes(len(batch.bins))):
      for group in groups:
        for process in processes:
          needed_by[process] |= {id(response): response for response in group.responses}
  needed_here, parcels = needed_by.pop(jax.process_index(), {}), {}
  for process, responses in needed_by.items():
    sampled_here = [r for r in responses.values() if not isinstance(r.token_ids, Elsewhere)]
    # Without log-probs (SFT) every process has every token.
    if sampled_here and sampled_here[0].sampler_logprobs is not None:
      parcels[process] = _pack(sampled_here)
  missing_from = defaultdict(list)  # by the process that has them
  for response in needed_here.values():
    if isinstance(response.token_ids, Elsewhere):
      missing_from[response.token_ids.process].append(response)
  received = {}
  for sender, parcel in hosts.exchange(parcels, missing_from).items():
    for response, whole in zip(missing_from[sender], _unpack(parcel, missing_from[sender])):
      received[id(response)] = whole
  return received


def _pack(responses: Sequence[Response]) -> bytes:
  """All token ids of the responses (int32), then all log-probs (float32)."""
  ids = [np.asarray(response.token_ids, np.int32) for response in responses]
  logprobs = [np.asarray(response.sampler_logprobs, np.float32) for response in responses]
  return np.concatenate(ids).tobytes() + np.concatenate(logprobs).tobytes()


def _unpack(parcel: bytes, responses: Sequence[Response]) -> list[Response]:
  """The responses with the token ids and log-probs of a parcel of _pack, in the same order."""
  half = len(parcel) // 2  # all ids, then all log-probs: both have 4 bytes a token
  ids, logprobs = np.frombuffer(parcel[:half], np.int32), np.frombuffer(parcel[half:], np.float32)
  whole, begin = [], 0
  for response in responses:
    part = slice(begin, begin + len(response.token_ids))
    begin = part.stop
    whole.append(
      dataclasses.replace(response, token_ids=ids[part], sampler_logprobs=logprobs[part])
    )
  return whole
