"""Collectives read from HLO text: as compilers write them, and from a program compiled here."""

import jax
import jax.numpy as jnp
import pytest

from srl_jax.planning.collectives import Collective, by_kind, collectives
from srl_jax.policy.sharding import make_mesh

# One gather spread over two fusions (channel 5) in a loop of 3, a pair of start and done, a tuple.
HLO = """HloModule jit_step

%fused.1 (p: bf16[8,16]) -> bf16[64,16] {
  ROOT %ag.1 = bf16[64,16]{1,0:T(8,128)} all-gather(%p), channel_id=5, MESH
}

%fused.2 (p: bf16[8,16]) -> bf16[64,16] {
  ROOT %ag.2 = bf16[64,16]{1,0:T(8,128)} all-gather(%p), channel_id=5, MESH
}

%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %a = bf16[64,16]{1,0} fusion(%x), kind=kLoop, calls=%fused.1
  %kernel = bf16[8]{0} custom-call(%x), frontend_attributes={kernel_metadata={
"blocks": 512
}}, metadata={op_name="splash"}
  %b = bf16[64,16]{1,0} fusion(%x), kind=kLoop, calls=%fused.2
}

%condition (p: (s32[], bf16[8,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: bf16[8,16]) -> f32[4] {
  %while = (s32[], bf16[8,16]{1,0}) while(%t), condition=%condition, body=%body
  %rs = ((f32[16,2]), f32[2,2]) reduce-scatter-start(%y), channel_id=6, replica_groups=[2,8]<=[16]
  %rs.done = f32[2,2]{1,0} reduce-scatter-done(%rs)
  %ar = (f32[4], /*index=1*/bf16[]) all-reduce(%z, %u), replica_groups=[8,2]<=[2,8]T(1,0)
  %cp = f32[4]{0} collective-permute(%z), channel_id=8, source_target_pairs={{0,1},{1,0}}
}
""".replace("MESH", "replica_groups=mesh['a'=2,'b'=8] {'b'}")


def test_every_way_to_write_one():
  assert collectives(HLO, per_node=8) == [
    Collective("reduce-scatter", 128, 8, 1, False),
    Collective("all-reduce", 18, 2, 1, True),
    Collective("collective-permute", 16, 2, 1, False),
    Collective("all-gather", 2048, 8, 3, False),
  ]


def test_a_mesh_over_nodes():
  """4 nodes of 8: axis_0 goes along the devices of a node, axis_1 from node to node."""
  mesh = "mesh['axis_0'=8,'axis_1'=4], device_ids=([4,8]T(1,0)) {'axis_%d'}"
  old = "replica_groups=[8,2]<=[2,8]T(1,0)"
  of_axis = lambda axis: collectives(HLO.replace(old, f"replica_groups={mesh % axis}"), per_node=8)
  assert Collective("all-reduce", 18, 8, 1, False) in of_axis(0)
  assert Collective("all-reduce", 18, 4, 1, True) in of_axis(1)


def test_bytes_sent_are_those_of_rings():
  assert Collective("all-gather", 800, 8, 3).sent() == 3 * 700
  assert Collective("reduce-scatter", 800, 8, 1).sent() == 700
  assert Collective("all-reduce", 800, 8, 1).sent() == 1400
  assert Collective("all-reduce", 800, 1, 1).sent() == 0
  assert Collective("collective-permute", 800, 2, 2).sent() == 1600


def test_tables_add_up_what_is_of_a_kind():
  found = [Collective("all-gather", 800, 8, 3), Collective("all-gather", 80, 8, 1)]
  assert by_kind(found) == {"all-gather": {"calls": 4, "bytes": 2480, "sent": 2170}}


def test_a_loop_of_unknown_length_is_refused():
  with pytest.raises(ValueError, match="loop whose length cannot be read"):
    collectives(HLO.replace("constant(3)", "parameter(0)"))


def test_groups_that_are_listed():
  listed = HLO.replace("replica_groups=[8,2]<=[2,8]T(1,0)", "replica_groups={{0,1},{2,3}}")
  assert Collective("all-reduce", 18, 2, 1, False) in collectives(listed, per_node=8)
  with pytest.raises(ValueError, match="unknown groups"):
    collectives(HLO.replace("replica_groups=[8,2]<=[2,8]T(1,0)", "replica_groups=?"))


def test_a_scan_compiled_here():
  """Five layers, whose weights are gathered in a scan: five gathers of a whole weight."""
  mesh = make_mesh("data=1,fsdp=8,tensor=1")

  def run(x, layers):
    def body(x, w):
      return jnp.tanh(x @ jax.reshard(w, jax.P())), None

    return jax.lax.scan(body, x, layers)[0]

  with jax.set_mesh(mesh):
    x = jax.device_put(jnp.ones((8, 64)), jax.P("fsdp", None))
    layers = jax.device_put(jnp.ones((5, 64, 64)), jax.P(None, "fsdp", None))
    found = collectives(jax.jit(run).lower(x, layers).compile().as_text())
  assert found == [Collective("all-gather", 64 * 64 * 4, 8, 5)]
