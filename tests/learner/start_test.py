"""A run with adapters: what is trained, sampled from, saved, and where it may start."""

import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from srl_jax import measuring
from srl_jax.config import defaults
from srl_jax.errors import UserError
from srl_jax.export import export
from srl_jax.learner import batch, checkpoint, optimizer, packing, setup, start, update
from srl_jax.policy import lora as L
from srl_jax.policy import peft_files
from srl_jax.policy.sharding import make_mesh
from srl_jax.policy.weights import load_hf

MODEL = pathlib.Path(__file__).resolve().parents[2] / "configs" / "miniature"
SHAPE = L.Shape(4, 8.0, L.TARGETS["all"])


def with_adapters(policy, tiny, unstacked=False):
  """The tests' policy with random adapters whose B is not 0."""
  rng = np.random.default_rng(7)
  adapters = jax.tree.map(
    lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), L.abstract(SHAPE, tiny)
  )
  base = policy()
  return L.join(jax.jit(L.shard)(adapters), L.unstack(base) if unstacked else base)


def one_step(model, groups, shards):
  """(new model, moments, metrics) of one step of AdamW."""
  given = dict(lr=1e-3, schedule="constant", warmup=0.0, b2=0.999, weight_decay=0.0, grad_norm=1.0)
  tx = optimizer.make(types.SimpleNamespace(**given), 10)
  rows = packing.pack(
    batch.weigh(groups, "sequence", 32), tokens_per_device=64, shards=shards, layout="blocks"
  )
  state = update.TrainState(0, model, update.init_moments(tx, L.split(model)[0]))
  loss = update.loss_of(defaults())
  state, output = update.train_step(tx, state, list(map(update.on_device, rows)), loss)
  return state.model, state.moments, update.step_metrics(output, 1)


@pytest.fixture(scope="module")
def alone(policy, groups, tiny):
  """One step on one device."""
  return one_step(with_adapters(policy, tiny), groups, 1)


def test_a_step_changes_the_adapters_and_nothing_else(policy, groups, tiny, alone):
  model, moments, _ = alone
  before = with_adapters(policy, tiny)
  for old, new in zip(*map(jax.tree.leaves, (L.split(before)[1], L.split(model)[1]))):
    np.testing.assert_array_equal(old, new)
  for old, new in zip(*map(jax.tree.leaves, (before.lora, model.lora))):
    step = np.abs(np.asarray(new) - np.asarray(old))
    assert 0 < step.max() < 2e-3 and (step > 0).mean() > 0.9
  count = sum(leaf.size for leaf in jax.tree.leaves(model.lora))
  kept = sum(leaf.size for leaf in jax.tree.leaves(moments) if leaf.ndim)
  assert kept == 2 * count


@pytest.mark.parametrize(
  ("mesh", "shards", "unstacked"),
  [("fsdp=8", 8, False), ("data=2,fsdp=2,tensor=2", 4, False), ("data=8", 8, True)],
)
def test_a_step_is_the_same_on_every_mesh(policy, groups, tiny, alone, mesh, shards, unstacked):
  with jax.set_mesh(make_mesh(mesh)):
    model, moments, metrics = one_step(with_adapters(policy, tiny, unstacked), groups, shards)
  assert metrics == pytest.approx(alone[2], abs=1e-4)
  for a, b in zip(*map(jax.tree.leaves, ((model.lora, moments), (alone[0].lora, alone[1])))):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=5e-5)


# ---- runs


def config(**values):
  made = quickstart.get_config()
  made.model = str(MODEL)
  made.lora.rank, made.lora.alpha, made.optimizer.lr = SHAPE.rank, SHAPE.alpha, 1e-2
  given = dict(data__path="hard:12", data__holdout=4, eval__benchmark="", log__tensorboard=False)
  made.update_from_flattened_dict(
    {key.replace("__", "."): value for key, value in (given | values).items()}
  )
  return made


def policy_of(config, folder=MODEL):
  return start.start_policy(config, folder)[0]


def trained_run(workdir, seed=0, **values):
  """A workdir with a checkpoint of adapters that are not 0, and that policy."""
  made = config(**values)
  policy, base = start.start_policy(made, MODEL)
  rng = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32)
  policy = L.join(jax.tree.map(draw, policy.lora), L.split(policy)[1])
  progress = checkpoint.Progress(
    base=base.json(), config=json.loads(json.dumps(checkpoint.config_json(made)))
  )
  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(update.TrainState(3, policy.lora, {"m": np.zeros(1)}), progress, 0.5)
  checkpoints.close()
  checkpoint.write_config(workdir, made)
  return policy


def assert_equal(found, wanted):
  found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
  assert len(found) == len(wanted)
  for a, b in zip(found, wanted):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@jax.jit
def logits_of(model):
  tokens_bt = jnp.arange(1, 13)[None] % model.config.vocab_size
  return model.logits(model.hidden(tokens_bt, jnp.arange(12)[None], jnp.ones_like(tokens_bt)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(workdir of a run, its policy)."""
  folder = tmp_path_factory.mktemp("saved") / "run"
  folder.mkdir()
  return folder, trained_run(folder)


def test_a_checkpoint_has_adapters_alone_and_names_the_base(saved):
  folder, policy = saved
  checkpoints = checkpoint.Checkpoints(folder)
  found = checkpoints.restore(3, L.abstract(SHAPE, policy.config))[0]
  checkpoints.close()
  assert_equal(found, policy.lora)
  files = [path for path in (folder / "checkpoints/3/model").rglob("*") if path.is_file()]
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(policy.lora))
  assert sum(path.stat().st_size for path in files) < size + 100_000
  shape, base = start.described(str(folder))
  assert shape == SHAPE and base.model == str(MODEL)
  assert len(base.sha256["model.safetensors"]) == 64


def restored(config, folder, workdir):
  """What a run of `config` on the model in `folder` continues from."""
  tx = optimizer.of_run(config, 10)
  architecture = setup.load_config(folder, config.dtype).on_platform("cpu")
  policy = setup.PolicyFiles(folder, architecture, None, [])
  checkpoints = checkpoint.Checkpoints(workdir)
  try:
    return setup.load_state(config, policy, tx, checkpoints)
  finally:
    checkpoints.close()


def test_a_run_continues_with_its_base_and_refuses_another(tmp_path):
  """The whole state comes back; a base whose file has another bit is refused by its hash."""
  model = tmp_path / "model"
  shutil.copytree(MODEL, model)
  made = config(model=str(model))
  with jax.set_mesh(make_mesh("data=1")):
    empty = tmp_path / "run"
    state, progress = restored(made, model, empty)
    checkpoints = checkpoint.Checkpoints(empty)
    checkpoints.save(state._replace(step=2, model=state.model.lora), progress)
    checkpoints.close()
    again, _ = restored(made, model, empty)
    assert again.step == 2
    assert_equal(again[1:], state[1:])
    (model / "SHA256SUMS").unlink(missing_ok=True)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="other weights.*SHA-256"):
      restored(made, model, empty)


def test_where_adapters_start(saved, tmp_path):
  """New ones; another run's or a peft folder's; and those of another shape are refused."""
  folder, policy = saved
  export(folder, tmp_path / "peft")
  new = policy_of(config())
  assert_equal(L.split(new)[1], L.split(policy)[1])
  np.testing.assert_array_equal(logits_of(new), logits_of(L.split(policy)[1]))
  for place in (folder, tmp_path / "peft"):
    assert_equal(policy_of(config(init_from=str(place))), policy)
    with pytest.raises(UserError, match="rank 4, alpha 8"):
      policy_of(config(init_from=str(place), lora__rank=8))
    with pytest.raises(UserError, match="rank 4, alpha 8"):
      policy_of(config(init_from=str(place), lora__targets="mlp"))


def other_model(folder):
  """A copy of MODEL with another last weight."""
  shutil.copytree(MODEL, folder)
  (folder / "SHA256SUMS").unlink(missing_ok=True)
  weights = bytearray((folder / "model.safetensors").read_bytes())
  weights[-1] ^= 1
  (folder / "model.safetensors").write_bytes(weights)
  return folder


def test_adapters_of_another_base_are_refused(saved, tmp_path):
  folder, _ = saved
  model = other_model(tmp_path / "model")
  with pytest.raises(UserError, match="other weights"):
    policy_of(config(model=str(model), init_from=str(folder)), model)


def test_adapters_do_not_start_from_a_run_that_trained_all_weights(tmp_path):
  made = config(lora__rank=0)
  policy = policy_of(made)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(update.TrainState(1, policy, {"m": np.zeros(1)}), checkpoint.Progress())
  checkpoints.close()
  with pytest.raises(UserError, match="srl_jax.export"):
    policy_of(config(init_from=str(tmp_path)))


def test_a_run_of_all_weights_starts_from_adapters_merged(saved, tmp_path):
  folder, policy = saved
  export(folder, tmp_path / "peft")
  export(folder, tmp_path / "merged", merge=True)
  wanted = np.asarray(logits_of(policy))
  assert np.abs(wanted - np.asarray(logits_of(L.split(policy)[1]))).max() > 0.1
  for place in (folder, tmp_path / "peft", tmp_path / "merged"):
    found = policy_of(config(init_from=str(place), lora__rank=0))
    assert found.lora is None and found.norm[...].dtype == np.float32
    np.testing.assert_allclose(np.asarray(logits_of(found)), wanted, rtol=0, atol=1e-4)


def test_the_reference_shares_the_frozen_weights(saved):
  """The KL term's policy is the start, without a second copy of the weights."""
  folder, policy = saved
  for init_from, adapters in ((str(folder), policy.lora), ("", None)):
    made = config(init_from=init_from, algorithm__kl=0.1)
    moved = L.join(jax.tree.map(lambda x: x + 1, policy.lora), L.split(policy)[1])
    reference = start.start_reference(made, MODEL, moved)
    assert_equal(reference.lora, adapters or policy_of(made).lora)
    for a, b in zip(*map(jax.tree.leaves, (L.split(reference)[1], L.split(moved)[1]))):
      assert a is b


def test_what_is_evaluated(saved, tmp_path):
  """The run, its peft folder and its merged folder are the same policy."""
  folder, policy = saved
  export(folder, tmp_path / "peft")
  export(folder, tmp_path / "merged", merge=True)
  for place in (folder, tmp_path / "peft", tmp_path / "merged"):
    run = measuring.read_run(place)
    model = measuring.model_folder(run, str(place))
    assert model == (place if place.name == "merged" else MODEL)
    assert measuring.stored_dtype(str(model)) == "float32"
    settings = dict(model=str(place), dtype="float32", engine="builtin")
    found = measuring.load_weights(run, model, settings)
    np.testing.assert_allclose(logits_of(found), logits_of(policy), rtol=0, atol=1e-4)
    assert isinstance(measuring.checksum(found), int)


def test_a_moved_base_has_a_flag_and_a_relative_one_is_found(tmp_path, monkeypatch):
  (tmp_path / "away").mkdir()
  (tmp_path / "run").mkdir()
  shutil.copytree(MODEL, tmp_path / "model")
  monkeypatch.chdir(tmp_path)
  policy = trained_run(tmp_path / "run", model="model")
  monkeypatch.chdir("away")  # "model" is no folder here
  export(tmp_path / "run", "peft")
  assert peft_files.read_config("peft").model == str(tmp_path / "model")
  other = other_model(tmp_path / "other")
  with pytest.raises(UserError, match="other weights"):
    export(tmp_path / "run", "wrong", base=str(other))
  moved = (tmp_path / "model").rename(tmp_path / "moved")
  export(tmp_path / "run", "merged", merge=True, base=str(moved))
  for place in (tmp_path / "run", tmp_path / "away" / "peft"):
    run = measuring.read_run(place, str(moved))
    folder = measuring.model_folder(run, str(place), str(moved))
    settings = dict(model=str(place), dtype="float32", engine="builtin")
    found = measuring.load_weights(run, folder, settings, str(moved))
    np.testing.assert_allclose(logits_of(found), logits_of(policy), rtol=0, atol=1e-4)
  with pytest.raises(UserError, match="--base"):
    measuring.model_folder(None, "merged", str(moved))


def test_exported_folders(saved, tmp_path):
  """peft and transformers compute the run's policy with them."""
  import peft
  import torch
  import transformers

  folder, policy = saved
  export(folder, tmp_path / "peft")
  export(folder, tmp_path / "merged", merge=True)
  base = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
  merged = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "merged", dtype=torch.float32
  )
  tokens_bt = torch.arange(1, 13)[None] % base.config.vocab_size
  for theirs in (peft.PeftModel.from_pretrained(base, tmp_path / "peft"), merged):
    with torch.inference_mode():
      found = theirs.eval()(tokens_bt).logits.numpy()
    np.testing.assert_allclose(found, logits_of(policy), rtol=0, atol=1e-4)
  assert (tmp_path / "merged" / "tokenizer.json").exists()
  assert peft_files.read_config(tmp_path / "peft").model == str(MODEL)
  with pytest.raises(UserError, match="dtype"):
    export(folder, tmp_path / "half", dtype="bfloat16")
  export(folder, tmp_path / "half", dtype="bfloat16", merge=True)
  half = load_hf(tmp_path / "half")[1]
  np.testing.assert_allclose(
    half.layers.q_proj[...],
    L.merge(policy_stacked(policy), jnp.float32).layers.q_proj[...],
    rtol=2**-8,
  )


def policy_stacked(policy):
  return L.join(policy.lora, load_hf(MODEL)[1])


@pytest.mark.parametrize(
  ("values", "named"),
  [
    ({"rank": -1}, "lora.rank"),
    ({"alpha": 0.0}, "lora.alpha"),
    ({"lr_factor": 0.0}, "lora.lr_factor"),
    ({"targets": "q_proj"}, "lora.targets"),
  ],
)
def test_wrong_values_are_refused(values, named):
  from srl_jax import config as configs

  made = config()
  made.lora.update(values)
  with pytest.raises(UserError, match=named):
    configs.check(made)


def test_a_rank_beyond_the_model_is_refused(tiny):
  from srl_jax.learner import limits

  made = config(lora__rank=65)
  with pytest.raises(UserError, match="lora.rank: 65"):
    limits.check(made, tiny, has_answers=False)


def test_the_rate_of_adapters():
  made = config(optimizer__lr=2e-4, optimizer__warmup=0.0, optimizer__schedule="constant")
  grads = {"w": jnp.ones(3)}
  moved = {}
  for rank in (0, 4):
    made.lora.rank = rank
    tx = optimizer.of_run(made, 10)
    updates, _ = tx.update(grads, tx.init(grads), grads)
    moved[rank] = -float(updates["w"][0])
  assert moved[0] == pytest.approx(2e-4, rel=1e-3) and moved[4] == pytest.approx(2e-3, rel=1e-3)
