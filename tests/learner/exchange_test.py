"""Rows that several processes pack together: bit for bit those of one process."""

import pytest

from tests.hosts_test import start

SCRIPT = """
import dataclasses, sys
import jax
import numpy as np
from srl_jax import hosts
from srl_jax.learner import exchange, packing
from srl_jax.learner.rows import PackedGroup, Response
from srl_jax.policy.sharding import make_mesh, on_host, own_rows, put_rows, shards

hosts.initialize()
me, count = jax.process_index(), jax.process_count()
rng = np.random.default_rng(0)

def response(old):
  ids = rng.integers(1, 90, rng.integers(1, 14)).tolist()
  logprobs = rng.uniform(-5, 0, len(ids)).astype(np.float32)
  old_logprobs = logprobs - 1 if old else None
  return Response(ids, logprobs.tolist(), float(rng.normal()), 0.5, old_logprobs)

def of_process(group, process):
  if process == me:
    return group
  absent = []
  for whole in group.responses:
    elsewhere = exchange.Elsewhere(process, len(whole.token_ids))
    absent.append(dataclasses.replace(whole, token_ids=elsewhere, sampler_logprobs=elsewhere))
  return dataclasses.replace(group, responses=absent)

for mesh in ("fsdp=8", "data=2,fsdp=4", "data=2,tensor=4", "tensor=8"):
  for layout in ("lines", "blocks", None):
    for groups_count, old in ((40, True), (3, False)):  # 3: most rows are padding
      groups = [
        PackedGroup([i + 1] * int(rng.integers(1, 20)), [response(old) for _ in range(4)])
        for i in range(groups_count)
      ]
      shapes = packing.row_shapes(packing.lengths_of(groups), 96, layout)
      with jax.set_mesh(make_mesh(mesh)):
        # The groups of process i are here what process i has sampled.
        known = [of_process(group, i % count) for i, group in enumerate(groups)]
        plan = packing.plan(known, shapes, shards("b"))
        rows = exchange.rows_of_process(plan)
        wanted = packing.fill(groups, shapes, shards("b"))
        assert len(rows) == len(wanted)
        for found, whole in zip(rows, wanted):
          assert len(found.tokens_bt) == len(own_rows(len(whole.tokens_bt)))
          assert jax.tree.structure(found) == jax.tree.structure(whole)
          for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole)):
            array = put_rows(a)
            assert array.shape == b.shape and array.dtype == b.dtype
            np.testing.assert_array_equal(on_host(array), b)
print("all well")
"""


@pytest.mark.integration
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_rows_of_processes_are_those_of_one(tmp_path, processes):
  logs = [tmp_path / f"{i}.log" for i in range(processes)]
  started = start(["-c", SCRIPT], logs, processes)
  try:
    for process, log in zip(started, logs):
      assert process.wait(600) == 0 and "all well" in log.read_text(), log.read_text()
  finally:
    for process in started:
      process.kill()
