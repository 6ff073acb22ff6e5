"""Adapters: equal to peft's, the same on every mesh, stacked or by layer, and merged."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.policy import lora as L
from srl_jax.policy import model as M
from srl_jax.policy.sharding import act_spec, make_mesh, reshard

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 96, 24)
SLOPE = RNG.normal(size=(24, 96)).astype(np.float32)  # of each logit in the loss
RANK, ALPHA = 4, 6.0


def random_lora(config, targets, seed=1):
  """Adapters whose B is not 0, as numpy arrays."""
  shape = L.Shape(RANK, ALPHA, L.TARGETS[targets])
  rng = np.random.default_rng(seed)
  draw = lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32)
  return jax.tree.map(draw, L.abstract(shape, config))


@jax.jit
def logits_of(model):
  tokens_bt = jnp.asarray(TOKENS, jnp.int32)[None]
  rows = tokens_bt, jnp.arange(24)[None], jnp.ones_like(tokens_bt)
  return model.logits(model.hidden(*rows))[0]


@jax.jit
def gradients_of(trained, frozen):
  return jax.grad(lambda trained: (logits_of(L.join(trained, frozen)) * SLOPE).sum())(trained)


def peft_matrices(config, lora):
  """{peft's name: [out, in] matrix} of adapters, or of their gradients."""
  modules = dict.fromkeys(L.ATTENTION, "self_attn") | dict.fromkeys(L.MLP, "mlp")
  found = {}
  for name in lora.shape.targets:
    for i in range(config.num_hidden_layers):
      where = f"base_model.model.model.layers.{i}.{modules[name]}.{name}"
      a, b = (np.asarray(getattr(lora, name + end)[...])[i] for end in ("_a", "_b"))
      found[f"{where}.lora_A.default.weight"] = a.reshape(-1, RANK).T
      found[f"{where}.lora_B.default.weight"] = b.reshape(RANK, -1).T
  return found


OTHERS = ["gqa1-tied", "qwen3", "llama3-rope-tied"]


@pytest.mark.parametrize(
  ("case", "targets"),
  [*(("gqa2-untied", targets) for targets in L.TARGETS), *((case, "all") for case in OTHERS)],
)
def test_logits_and_gradients_equal_peft(hf_case, case, targets):
  import peft
  import torch

  hf = hf_case(case)
  lora = random_lora(hf.config, targets)
  kind = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(L.TARGETS[targets]))
  theirs = peft.get_peft_model(copy.deepcopy(hf.theirs), kind).eval()
  params = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
  matrices = peft_matrices(hf.config, lora)
  assert params.keys() == matrices.keys()
  with torch.no_grad():
    for name, matrix in matrices.items():
      params[name].copy_(torch.tensor(matrix))

  wanted = theirs(torch.tensor(TOKENS[None])).logits[0]
  (wanted * torch.tensor(SLOPE)).sum().backward()
  found = np.asarray(logits_of(L.join(lora, hf.model)))
  np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=0, atol=1e-5)
  assert np.abs(found - np.asarray(logits_of(hf.model))).max() > 0.1  # the adapters do something
  gradients = peft_matrices(hf.config, gradients_of(lora, hf.model))
  for name, p in params.items():
    scale = p.grad.abs().max().item()
    difference = np.abs(gradients[name] - p.grad.numpy()).max()
    assert difference <= 1e-5 * max(scale, 1.0), name


def test_new_adapters_change_nothing_and_are_drawn_as_peft_draws_them(hf_case):
  hf = hf_case("gqa2-untied")
  lora = L.init(L.Shape(8, 16.0, L.TARGETS["all"]), hf.config, seed=3)
  np.testing.assert_array_equal(logits_of(L.join(lora, hf.model)), logits_of(hf.model))
  for name, part, param in lora.params():
    if part[0] == "j":
      assert not np.asarray(param[...]).any()
    else:
      limit = np.prod(param.shape[1:-1]) ** -0.5  # kaiming_uniform with a = sqrt(5)
      assert 0.95 * limit < np.abs(param[...]).max() <= limit, name
      assert np.std(param[...]) == pytest.approx(limit / 3**0.5, rel=0.1)
  again = L.init(lora.shape, hf.config, seed=3)
  other = L.init(lora.shape, hf.config, seed=4)
  np.testing.assert_array_equal(lora.q_proj_a[...], again.q_proj_a[...])
  assert (np.asarray(lora.q_proj_a[...]) != np.asarray(other.q_proj_a[...])).any()


def test_a_merged_policy_computes_the_same(hf_case):
  hf = hf_case("gqa2-untied")
  policy = L.join(random_lora(hf.config, "all"), hf.model)
  merged = L.merge(policy, jnp.float32)
  assert merged.lora is None
  np.testing.assert_allclose(logits_of(merged), logits_of(policy), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  ("mesh", "unstacked"),
  [(None, False), (None, True), ("data=2,fsdp=2,tensor=2", False)]
  + [
    pytest.param(*case, marks=pytest.mark.slow) for case in (("tensor=2", True), ("fsdp=8", False))
  ],
)
def test_gradients_are_the_same_on_every_mesh_stacked_or_by_layer(hf_case, mesh, unstacked):
  hf = hf_case("gqa2-untied")
  lora = random_lora(hf.config, "all")
  wanted = gradients_of(lora, hf.model)
  on_host = jax.tree.map(np.asarray, hf.model)

  def found():
    model = jax.jit(M.shard)(on_host)
    model = L.unstack(model) if unstacked else model
    rows_model = L.join(jax.jit(L.shard)(lora), model)
    return rows_model.lora, gradients_on_mesh(*L.split(rows_model))

  if mesh is None:
    trained, gradients = found()
  else:
    with jax.set_mesh(make_mesh(mesh)):
      trained, gradients = found()
  for a, b, c in zip(*map(jax.tree.leaves, (gradients, wanted, trained))):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=2e-4)
    assert a.sharding.is_equivalent_to(c.sharding, a.ndim)


@jax.jit
def gradients_on_mesh(trained, frozen):
  """gradients_of, for eight equal rows."""
  tokens_bt = reshard(jnp.tile(jnp.asarray(TOKENS, jnp.int32), (8, 1)), act_spec("bt"))
  positions_bt = reshard(jnp.tile(jnp.arange(24), (8, 1)), act_spec("bt"))

  def loss(trained):
    model = L.join(trained, frozen)
    hidden = model.hidden(tokens_bt, positions_bt, jnp.ones_like(tokens_bt), remat="full")
    return (model.logits(hidden) * SLOPE).sum() / 8

  return jax.grad(loss)(trained)
