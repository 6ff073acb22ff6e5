"""Meshes: the same numbers on all of them, weights sharded as the tables say, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from srl_jax.policy import model as M
from srl_jax.policy import sharding as S

CONFIG = M.ModelConfig(96, 64, 128, 3, 4, 2, 16)


def batch():
  """8 rows of 16 tokens: padding, a segment of 5, a prompt with two branches."""
  tokens = np.arange(8 * 16, dtype=np.int32).reshape(8, 16) * 7 % 96
  line = lambda values: np.tile(np.array(values, np.int32), (8, 1))
  positions = line([0, 0, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 3, 4, 5])
  segments = line([0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2])
  branches = line([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
  return tokens, positions, segments, branches


@jax.jit
@jax.value_and_grad
def loss_and_grads(model, tokens, positions, segments, branches):
  logits = model.logits(model.hidden(tokens, positions, segments, branches, remat="full"))
  real = (segments > 0)[:, :, None]
  return jnp.sum(jnp.where(real, logits**2, 0)) / 100


@pytest.mark.parametrize(
  "family, spec",
  [
    ("qwen2", "data=8"),
    ("qwen2", "fsdp=8"),
    ("qwen2", "data=2,fsdp=2,tensor=2"),
    ("qwen3", "data=2,fsdp=2,tensor=2"),
    ("qwen2", "data=1,fsdp=4,tensor=2"),
  ],
)
def test_sharded_loss_and_gradients_equal_one_device(family, spec):
  config = dataclasses.replace(CONFIG, model_type=family)
  expected, expected_grads = loss_and_grads(M.init(config, 0), *batch())
  with jax.set_mesh(S.make_mesh(spec)):
    model = M.init(config, 0)
    loss, grads = loss_and_grads(model, *(S.put(x, "bt") for x in batch()))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  for name, layout in M.partition_specs(config)["layers"].items():
    weight, grad = getattr(model.layers, name)[...], getattr(grads.layers, name)[...]
    assert weight.sharding.spec == grad.sharding.spec == layout, name
    assert weight.addressable_shards[0].data.nbytes == weight.nbytes // _cuts(layout, spec), name
  for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads)):
    scale = float(jnp.abs(theirs).max())
    assert scale > 0
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-5 * scale)


def _cuts(layout, spec):
  """Number of shards of a weight with this layout."""
  sizes = S.parse_mesh(spec)
  return int(np.prod([sizes[axis] for axis in layout if axis]))


def test_parse_mesh_by_hand():
  assert S.parse_mesh("fsdp=8") == {"data": 1, "fsdp": 8, "tensor": 1}
  assert S.parse_mesh(" tensor=2, data=3 ") == {"data": 3, "fsdp": 1, "tensor": 2}
  assert S.parse_mesh("") == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("spec", ["pipeline=2", "fsdp", "fsdp=0", "fsdp=-1", "fsdp=two"])
def test_parse_mesh_refuses_what_is_no_mesh(spec):
  with pytest.raises(ValueError, match="AXIS=SIZE"):
    S.parse_mesh(spec)


def test_make_mesh_has_the_axes():
  mesh = S.make_mesh("fsdp=2,tensor=2")
  assert mesh.axis_names == S.AXES and mesh.devices.shape == (1, 2, 2)
  with pytest.raises(ValueError, match="fsdp=16.* 16 .* 8"):
    S.make_mesh("fsdp=16")


QWEN_7B = M.ModelConfig(152064, 3584, 18944, 28, 28, 4, 128).sizes()


@pytest.mark.parametrize("spec", ["data=512", "fsdp=7", "fsdp=512", "tensor=4", "data=3,tensor=2"])
def test_check_mesh_accepts_what_divides(spec):
  S.check_mesh(spec, QWEN_7B)


@pytest.mark.parametrize(
  "spec, message",
  [
    ("tensor=7", "tensor=7 .*num_key_value_heads 4 and .*legal values of tensor are 1, 2, 4$"),
    ("tensor=8", "tensor=8 .*num_attention_heads 28 and num_key_value_heads 4; legal.* 1, 2, 4$"),
    ("fsdp=3", "fsdp=3 .*hidden_size 3584; legal values of fsdp are 1, 2, 4, 7, 8, 14, 16, .*3584"),
    ("fsdp=1024", "fsdp=1024 does not divide the model's hidden_size 3584; "),
  ],
)
def test_check_mesh_refuses_what_does_not_divide(spec, message):
  with pytest.raises(ValueError, match=f"mesh: {message}"):
    S.check_mesh(spec, QWEN_7B)


@pytest.mark.parametrize("letter, name", S.DIMENSIONS.items())
def test_check_mesh_looks_at_every_size(letter, name):
  sizes = dict.fromkeys(QWEN_7B, 8) | {letter: 12}
  axis = S.PARAM_AXES[letter]
  S.check_mesh(f"{axis}=4", sizes)
  with pytest.raises(ValueError, match=f"{axis}=8 .*{name} 12"):
    S.check_mesh(f"{axis}=8", sizes)


def test_all_gather_weight_casts_before_it_communicates():
  """bfloat16 is sent, not the float32 master; the weight stays sharded along tensor."""
  with jax.set_mesh(S.make_mesh("fsdp=4,tensor=2")):
    weight = S.put(np.ones((8, 2, 4), np.float32), "")
    weight = jax.jit(lambda w: S.reshard(w, S.param_spec("dnh")))(weight)
    gather = jax.jit(lambda w: S.all_gather_weight(w, "dnh", jnp.bfloat16))
    spec = gather(weight).sharding.spec
    # "reduced": the gradient is summed over the batch's axes when it is sharded again.
    assert spec == P(None, "tensor", None, reduced={"data", "fsdp"})
    program = gather.lower(weight).compile().as_text()
  moved = [line for line in program.splitlines() if " all-gather" in line]
  assert moved and not any("f32[" in line.split("all-gather")[0] for line in moved)


def test_put_with_and_without_a_mesh():
  rows = np.arange(32, dtype=np.int32).reshape(8, 4)
  assert S.put(rows, "bt").sharding.num_devices == 1
  assert not S.has_mesh()
  mesh = S.make_mesh("data=2,fsdp=2,tensor=2")
  array = S.put(rows, "bt", mesh)
  assert array.sharding.spec == P(("data", "fsdp"), None)
  assert array.addressable_shards[0].data.shape == (2, 4)
  with jax.set_mesh(mesh):
    assert S.put(rows, "bt").sharding == array.sharding


@pytest.mark.parametrize("d, devices, expected", [(64, 3, 2), (48, 8, 8), (50, 8, 5), (7, 4, 1)])
def test_fitting_mesh_uses_devices_that_divide_the_model(monkeypatch, d, devices, expected):
  """As evaluate and prepare --hard do without a flag."""
  monkeypatch.setattr(S.hosts, "devices", lambda: [None] * devices)
  sizes = dict.fromkeys("vdflnkh", 13) | {"d": d}
  assert S.fitting_mesh(sizes) == f"fsdp={expected}"
