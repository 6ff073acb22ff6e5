"""Each process's rows of the micro-batches, with token ids that another process may have sampled.

All processes plan the micro-batches, because a plan needs only the lengths of the sequences. Which
rows a device gets does not depend on who sampled them, so a batch is packed as by one process.
Token ids and log-probs are then sent once, directly to the processes that have the rows.
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
  """In place of token ids or log-probs that only `process` has: `count` of them."""

  process: int
  count: int

  def __len__(self) -> int:
    return self.count


def rows_of_process(plan: Sequence[MicroBatch]) -> list[Rows]:
  """The rows of this process's devices in each micro-batch, on the host; a collective.

  Call it with the mesh set, from one thread on all processes.
  """
  arrived = _fetch(plan)
  rows = []
  for batch in plan:
    bins = []
    for row in own_rows(len(batch.bins)):
      bins.append([_complete(group, arrived) for group in batch.bins[row]])
    rows.append(rows_of(batch, bins))
  return rows


def _complete(group: PackedGroup, arrived: dict[int, Response]) -> PackedGroup:
  responses = [arrived.get(id(response), response) for response in group.responses]
  return dataclasses.replace(group, responses=responses)


def _fetch(plan: Sequence[MicroBatch]) -> dict[int, Response]:
  """{id of a response from elsewhere that this process has in its rows: the whole response}."""
  # For each process the responses of its rows, {id: response}, in the same order on all processes.
  needed: dict[int, dict[int, Response]] = defaultdict(dict)
  for batch in plan:
    for groups, processes in zip(batch.bins, row_processes(len(batch.bins))):
      for group in groups:
        for process in processes:
          needed[process] |= {id(response): response for response in group.responses}
  mine, parcels = needed.pop(jax.process_index(), {}), {}
  for process, responses in needed.items():
    sampled_here = [r for r in responses.values() if not isinstance(r.token_ids, Elsewhere)]
    # Without log-probs (SFT) every process has every token.
    if sampled_here and sampled_here[0].sampler_logprobs is not None:
      parcels[process] = _pack(sampled_here)
  absent = defaultdict(list)
  for response in mine.values():
    if isinstance(response.token_ids, Elsewhere):
      absent[response.token_ids.process].append(response)
  arrived = {}
  for sender, parcel in hosts.exchange(parcels, absent).items():
    for response, whole in zip(absent[sender], _unpack(parcel, absent[sender])):
      arrived[id(response)] = whole
  return arrived


def _pack(responses: Sequence[Response]) -> bytes:
  """All token ids (int32), then all log-probs (float32)."""
  ids = [np.asarray(response.token_ids, np.int32) for response in responses]
  logprobs = [np.asarray(response.sampler_logprobs, np.float32) for response in responses]
  return np.concatenate(ids).tobytes() + np.concatenate(logprobs).tobytes()


def _unpack(parcel: bytes, responses: Sequence[Response]) -> list[Response]:
  """The responses with the token ids and log-probs of a parcel, which has them in this order."""
  half = len(parcel) // 2  # both kinds have 4 bytes a token
  ids, logprobs = np.frombuffer(parcel[:half], np.int32), np.frombuffer(parcel[half:], np.float32)
  whole, begin = [], 0
  for response in responses:
    part = slice(begin, begin + len(response.token_ids))
    begin = part.stop
    whole.append(
      dataclasses.replace(response, token_ids=ids[part], sampler_logprobs=logprobs[part])
    )
  return whole
