"""Log-probs of sampled responses under a fixed policy: before the batch's first step, or reference.

They are computed in one shape of micro-batches, so in one program, whichever shapes the optimiser
steps have.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from srl_jax.learner import packing, update
from srl_jax.learner.exchange import rows_of_process
from srl_jax.learner.packing import Bin, RowShape
from srl_jax.learner.rows import PackedGroup, Response
from srl_jax.policy.model import Qwen2
from srl_jax.policy.sharding import on_host, shards


def with_logprobs(
  groups: Sequence[PackedGroup],
  shape: RowShape,
  loss: update.Loss,
  old: Qwen2 | None = None,
  reference: Qwen2 | None = None,
) -> list[PackedGroup]:
  """Returns the groups with the log-probs of each response's tokens under each policy given.

  A collective that waits for the device: the log-probs return to all hosts, where they are packed
  for the update.

  Args:
    groups: with their loss weights, because tokens of weight 0 are not scored.
    shape: of the micro-batches; it must take every sequence (packing.roomiest).
    loss: has the temperature.
    old: the policy before the batch's first optimiser step.
    reference: the policy of the KL term.
  """
  policies = {"old_logprobs": old, "reference_logprobs": reference}
  policies = {field: policy for field, policy in policies.items() if policy is not None}
  if not policies or not groups:
    return list(groups)
  # All are dispatched before the first is waited for.
  computed = []
  plan = packing.plan(groups, [shape], shards("b"))
  for batch, rows in zip(plan, rows_of_process(plan)):
    rows = update.on_device(rows)
    fields = {f: update.logprobs_of(policy, rows, loss=loss) for f, policy in policies.items()}
    computed.append((batch.bins, fields))
  # {id of a response: {field: its log-probs}}; a group that was cut keeps its Response objects.
  found = collections.defaultdict(dict)
  for bins, fields in computed:
    for field, logprobs_bs in fields.items():
      for response, logprobs in by_response(bins, on_host(logprobs_bs)):
        found[id(response)][field] = logprobs
  with_fields = lambda response: dataclasses.replace(response, **found[id(response)])
  return [
    dataclasses.replace(group, responses=list(map(with_fields, group.responses)))
    for group in groups
  ]


def by_response(
  bins: Sequence[Bin], logprobs_bs: np.ndarray
) -> Iterator[tuple[Response, np.ndarray]]:
  """Yields each response of a micro-batch with its tokens' log-probs.

  bins: the groups of each row; logprobs_bs: float32, of the rows.
  """
  for groups, logprobs_s in zip(bins, logprobs_bs):
    begin = 0  # the trained tokens of a row are its responses', in order
    for response in itertools.chain(*(group.responses for group in groups)):
      end = begin + len(response.token_ids)
      yield response, logprobs_s[begin:end]
      begin = end
