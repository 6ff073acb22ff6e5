"""Every config passes its own checks; contradictions are rejected with a remedy."""

import functools
import importlib.util
import math
import pathlib
import re

import jax
import pytest
from ml_collections import ConfigDict

from configs import miniature_row, quickstart
from srl_jax import config as common
from srl_jax import folders
from srl_jax.errors import UserError
from srl_jax.learner import update, workdir
from srl_jax.planning import models, programs
from srl_jax.policy.sharding import check_mesh, make_mesh

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(path for path in (ROOT / "configs").rglob("*.py"))


def build(path, arg=None):
  spec = importlib.util.spec_from_file_location(f"{path.stem}_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_configs_pass_the_checks(path):
  """It builds, passes the checks, has every key and no other, and its mesh cuts its model."""
  config = build(path)
  if config.rollout.engine == "vllm":  # the launch scripts set the addresses
    config.rollout.servers = "http://127.0.0.1:8101"
  common.check(config)
  assert folders.flatten(config).keys() == folders.flatten(common.defaults()).keys()
  with pytest.raises(AttributeError):
    config.algorithm.clip = 0.2
  with pytest.raises(TypeError):
    config.batch.prompts = "many"
  check_mesh(common.mesh_spec(config), models.architecture(config.model, config.dtype).sizes())


BUILT = set()  # most differences between configs do not affect a compiled program


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_configs_build_their_programs_on_shapes(path):
  """The programs of its run, on shapes: model, moments, largest micro-batch, loss."""
  config = build(path)
  architecture = models.architecture(config.model, config.dtype)
  mesh = make_mesh(common.mesh_spec(config))
  with jax.set_mesh(mesh):
    state = programs.state_of(config, architecture)
    loss = update.loss_of(config)
    assert (loss.algorithm is None) == (config.method == "sft")
    same = (architecture, mesh, loss, state.shape, config.algorithm.kl > 0)
    same += (config.algorithm.steps_per_batch > 1, config.lora.rank)
    if same in BUILT:
      return
    BUILT.add(same)
    for call in programs.calls(config, state):
      made = call.function.eval_shape(*call.args, **call.kwargs)
      assert all(0 not in leaf.shape for leaf in jax.tree.leaves(made)), call.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_configs_refuse_unknown_arguments(path):
  with pytest.raises(ValueError, match="'sede'"):
    build(path, "sede=3")


MATH = ("srl_math", "srl_math_no_filter", "one_step_math", "rlvr_math", "sft_rlvr_math")
MATH += ("srl_rlvr_math", "sft_outline", "sft_reasoning")


@pytest.mark.parametrize("name", MATH)
def test_configs_run_small_with_tiny(name):
  config = build(ROOT / "configs" / f"{name}.py", "model=/models/tiny,data=steps.jsonl,tiny")
  common.check(config)
  assert (config.model, config.data.source) == ("/models/tiny", "jsonl")
  assert config.batch.prompts < 16 and config.mesh == "cpu" and config.train.steps == 3
  assert config.rollout.max_tokens < 100


def changes(path, base):
  """Returns {key: value} of the keys in which a config differs from another one."""
  before = folders.flatten(build(ROOT / "configs" / f"{base}.py"))
  return {k: v for k, v in folders.flatten(build(path)).items() if v != before[k]}


ABLATIONS = {
  "autojunk": {"reward.autojunk": True},
  "epsilon": {"algorithm.std_epsilon": 0.05},
  "clip": {"algorithm.steps_per_batch": 4},
  "clip_higher": {"algorithm.steps_per_batch": 4, "algorithm.clip_high": 0.28},
  "kl": {"algorithm.kl": 0.001},
  "title_hint": {"data.title_hint": True},
  "verl": {"algorithm.advantage_ddof": 1, "algorithm.aggregate": "token"},
  "dr_grpo": {"algorithm.advantage_scale": "none"},
  "importance_cap": {"algorithm.importance_cap": 0.0},
  "lora": {"lora.rank": 16},
  "lora_attention": {"lora.rank": 16, "lora.targets": "attention"},
  "similarity_words": {"reward.similarity": "words"},
  "similarity_edit": {"reward.similarity": "edit"},
  "similarity_chrf": {"reward.similarity": "chrf"},
  "lora_merged": {"lora.rank": 16, "lora.merged_push": True, "rollout.engine": "vllm"},
}


def test_ablations_change_their_keys_only():
  paths = sorted((ROOT / "configs" / "ablations").glob("*.py"))
  assert {path.stem: changes(path, "srl_math") for path in paths} == ABLATIONS


def test_rows_have_the_papers_hyperparameters():
  """Tables 5 (SFT), 6 (RLVR) and 7 (SRL: the defaults, below)."""
  configs = ROOT / "configs"
  rlvr = {"method": "rlvr", "batch.prompts": 128, "prompt.style": "plain"}
  rlvr |= {"rollout.max_tokens": 4096, "algorithm.std_epsilon": 0.0}
  sft = {"method": "sft", "optimizer.lr": 5e-6, "optimizer.schedule": "cosine"}
  sft |= {"optimizer.warmup": 0.3, "batch.prompts": 64, "train.epochs": 3}
  outline = sft | {"prompt.style": "plain", "train.eval_every": 15}
  trace = {"data.fields.reasoning": "deepseek_thinking_trajectory"}
  trace |= {"batch.tokens_per_device": 32768}
  assert changes(configs / "rlvr_math.py", "srl_math") == rlvr
  assert changes(configs / "sft_outline.py", "srl_math") == outline
  assert changes(configs / "sft_reasoning.py", "sft_outline") == trace
  assert changes(configs / "sft_swe.py", "srl_swe") == sft | {"train.eval_every": 100}
  assert changes(configs / "sft_rlvr_math.py", "rlvr_math") == {"init_from": "runs/sft_outline"}
  srl_rlvr = {"init_from": "runs/srl_math", "prompt.style": "think"}
  assert changes(configs / "srl_rlvr_math.py", "rlvr_math") == srl_rlvr
  no_filter = {"algorithm.dynamic_sampling": False}
  assert changes(configs / "srl_math_no_filter.py", "srl_math") == no_filter
  one_step = {"method": "one_step", "rollout.max_tokens": 4096}
  assert changes(configs / "one_step_math.py", "srl_math") == one_step


def test_miniature_rows_are_the_quickstart_with_another_method():
  quick = quickstart.get_config()
  rows = {row: miniature_row.get_config(f"row={row},steps=80") for row in miniature_row.ROWS}
  for config in rows.values():
    common.check(config)
    for key in ("model", "mesh", "algorithm.max_rounds", "batch.prompts", "data.holdout"):
      assert folders.flatten(config)[key] == folders.flatten(quick)[key]
  assert {row: config.method for row, config in rows.items()} == dict(
    **dict(srl="srl", srl_no_filter="srl", srl_long="srl", one_step="one_step", rlvr="rlvr"),
    **dict(srl_words="srl", srl_edit="srl", srl_chrf="srl"),
    **dict(rlvr_after="rlvr", sft_outline="sft", sft_reasoning="sft"),
  )
  steps = {row: config.train.steps for row, config in rows.items()}
  assert steps["srl"] == steps["srl_no_filter"] == 80 and steps["srl_long"] == 120
  # The second stage costs as much as the additional steps of srl_long.
  assert steps["rlvr_after"] * miniature_row.WHOLE_COST == steps["srl_long"] - steps["srl"]
  assert not rows["srl_no_filter"].algorithm.dynamic_sampling
  assert rows["srl_edit"].reward.similarity == "edit" and rows["srl"].reward.similarity == "difflib"
  kind, count = quick.data.path.split(":")
  assert (kind, rows["sft_reasoning"].data.path) == ("hard", f"reasoned:{count}")
  with pytest.raises(ValueError, match="row='ppo'.*srl"):
    miniature_row.get_config("row=ppo")


def test_defaults_are_the_papers():
  """Table 7 and section 4 of the paper, which has no value for what is not here."""
  config = common.defaults()
  assert (config.batch.prompts, config.optimizer.lr, config.optimizer.grad_norm) == (512, 5e-7, 1.0)
  assert (config.rollout.samples, config.rollout.temperature) == (8, 1.0)
  assert (config.algorithm.kl, config.optimizer.schedule) == (0.0, "constant")
  assert (config.algorithm.aggregate, config.algorithm.steps_per_batch) == ("sequence", 1)
  assert (config.dtype, config.train.epochs, config.data.holdout) == ("bfloat16", 30, 60)
  assert (config.reward.format_penalty, config.reward.autojunk) == (-1.0, False)


def test_keys_are_read_somewhere():
  """An option that nothing reads is worse than none."""
  files = (ROOT / "srl_jax").rglob("*.py")
  sources = "\n".join(file.read_text() for file in files if file.name != "config.py")
  sources += (ROOT / "srl_jax" / "config.py").read_text().split("CHOICES = {")[1]
  for key in folders.flatten(common.defaults()):
    if not key.startswith("data.fields."):  # read as fields[name]
      assert re.search(rf"\b{'.'.join(['config', *key.split('.')][-2:])}\b", sources), key
  assert set(workdir.FREE_KEYS) <= folders.flatten(common.defaults()).keys()


# ---- arguments of a config file


def test_parse_arg_takes_the_type_of_the_default():
  parse = lambda arg: common.parse_arg(arg, seed=0, lr=1.0, model="a", tiny=False).to_dict()
  assert parse(None) == parse("") == dict(seed=0, lr=1.0, model="a", tiny=False)
  found = parse("model=x/y=z,tiny,seed=3,lr=1e-6")
  assert found == dict(seed=3, lr=1e-6, model="x/y=z", tiny=True)
  assert parse("tiny=false")["tiny"] is False and parse("lr=2")["lr"] == 2.0


@pytest.mark.parametrize(
  "arg, message",
  [
    ("sead=3", "config argument 'sead' is unknown; this config takes seed, lr, tiny"),
    ("seed=1.5", "config argument seed='1.5' is not a int"),
    ("lr=fast", "config argument lr='fast' is not a float"),
    ("tiny=yes", "config argument tiny='yes' is not true or false"),
    ("seed", "config argument seed='true' is not a int"),
  ],
)
def test_parse_arg_refuses_wrong_arguments(arg, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    common.parse_arg(arg, seed=0, lr=1.0, tiny=False)
  with pytest.raises(ValueError, match="none"):
    common.parse_arg("seed=1")


# ---- values


def changed(**values):
  """Returns a valid config with these values; a.b is written a__b."""
  config = build(ROOT / "configs" / "quickstart.py")
  config.update_from_flattened_dict({key.replace("__", "."): v for key, v in values.items()})
  return config


@pytest.mark.parametrize(
  "values, message",
  [
    (dict(method="ppo"), r"method: 'ppo' .*srl \| .* \| sft"),
    (dict(algorithm__aggregate="mean"), r"aggregate: 'mean' .*sequence \| token"),
    (dict(algorithm__advantage_ddof=2), r"advantage_ddof: 2 .*0 \| 1"),
    (dict(seed=2**32), "seed: 4294967296 .* 4294967295"),
    (dict(seed=-1), "seed: -1 "),
    (dict(reward__format_penalty=float("nan")), "reward.format_penalty: nan "),
    (dict(reward__format_penalty=0.5), "reward.format_penalty: 0.5 .* -1000 to 0"),
    (dict(rollout__max_tokens=2**40), f"rollout.max_tokens: 1099511627776 .*{2**31 - 1}"),
    (dict(batch__prompts=0), "batch.prompts: 0 "),
    (dict(optimizer__lr=-1e-6), "optimizer.lr: -1e-06 "),
    (dict(optimizer__lr=float("nan")), "optimizer.lr: nan "),
    (dict(rollout__temperature=float("inf")), "rollout.temperature: inf "),
    (dict(optimizer__b2=1.5), r"optimizer.b2: 1.5 .*\[0, 1\)"),
    (dict(train__stop_at=3.0), r"train.stop_at: 3.0 .* 1$"),
    (dict(train__stop_at=0.3, data__holdout=0), "train.stop_at: .*data.holdout"),
    (dict(rollout__patience=-1.0), "rollout.patience: -1.0 "),
    (dict(mesh="data=1,data=2"), "mesh: 'data=1,data=2' "),
    (dict(algorithm__std_epsilon=-0.1), "algorithm.std_epsilon: -0.1 "),
    (dict(mesh="h100x7"), "mesh: 'h100x7' .* cpu, .*data=1,fsdp=1"),
    (dict(mesh="data=1,pipe=2"), "mesh: 'pipe=2' "),
    (dict(model=""), "model: "),
    (dict(data__source="hub", data__path=""), "data.path: "),
    (dict(train__steps=0, train__epochs=0), "train.steps and train.epochs"),
    (dict(optimizer__warmup=1.0), r"optimizer.warmup: 1.0 .*\[0, 1\)"),
    (dict(eval__mode="off"), "eval.benchmark .*eval.mode"),
    (dict(batch__tokens_per_device=100), r"batch.tokens_per_device: 100 .*\(96\).*\(32\)"),
    (dict(rollout__temperature=0.0), "rollout.temperature: 0 "),
    (dict(reward__similarity="bleu"), "reward.similarity: 'bleu' .*difflib"),
    (dict(rollout__samples=1), "rollout.samples: .* 1 .* 2"),
    (dict(rollout__width=4), r"rollout.width: 4 .*rollout.samples \(8\)"),
    (dict(rollout__lag=1), "rollout.lag: .* 1 "),
    (dict(rollout__engine="vllm"), "rollout.servers: .*launch/vllm_server.sh"),
  ],
)
def test_check_refuses_contradictions_with_the_remedy(values, message):
  common.check(changed())
  with pytest.raises(ValueError, match=message):
    common.check(changed(**values))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300, -1e300])
def test_check_has_a_range_for_every_number(value):
  """A number that no run can use is refused, whichever key has it; also as a whole number."""
  numbers = [
    key
    for key, default in folders.flatten(changed()).items()
    if isinstance(default, int | float) and not isinstance(default, bool)
  ]
  assert len(numbers) > 30
  for key in numbers:
    config = changed().unlock().to_dict()
    *groups, name = key.split(".")
    group = functools.reduce(lambda group, name: group[name], groups, config)
    group[name] = int(value) if math.isfinite(value) and isinstance(group[name], int) else value
    if math.isfinite(value) and isinstance(group[name], float) and value > 0 and key not in BOUNDED:
      continue  # large, but finite
    with pytest.raises(UserError, match=re.escape(key)):
      common.check(ConfigDict(config))


# floats with an upper limit
BOUNDED = ("reward.format_penalty", "optimizer.b2", "optimizer.warmup")
BOUNDED += ("train.stop_at",)


@pytest.mark.parametrize(
  "address",
  [
    "http://me:secret@10.0.0.1:8101",
    "http://me:secret%40@10.0.0.1:8101",
    "http://10.0.0.1:8101,http://me:secret%4010.0.0.1:8101",
    "http://me:secret＠10.0.0.1:8101",
    "http://10.0.0.1:8101?api_key=secret",
    "http://10.0.0.1:8101/#secret",
    "me:secret@host",
  ],
)
def test_check_refuses_a_secret_in_an_address_and_hides_it(address):
  """Whatever the engine: config.json is written with every key. A run writes it after the check."""
  common.check(changed(rollout__servers="http://[fe80::1%eth0]:8101,http://127.0.0.1:8101"))
  for more in ({}, dict(rollout__engine="vllm"), dict(method="sft", data__path="mix")):
    with pytest.raises(UserError, match="VLLM_API_KEY") as caught:
      common.check(changed(rollout__servers=address, **more))
    assert "secret" not in str(caught.value)


def test_check_refuses_a_config_without_a_key():
  config = changed()
  with config.unlocked():
    del config.batch["remat"]
  with pytest.raises(ValueError, match="batch.remat: "):
    common.check(config)


def test_check_of_sft_needs_no_groups():
  common.check(
    changed(method="sft", data__path="mix", rollout__samples=1, rollout__temperature=0.0)
  )


def test_mesh_spec_takes_names_and_sizes():
  assert common.mesh_spec(changed(mesh="h100x8")) == "data=1,fsdp=8,tensor=1"
  assert common.mesh_spec(changed(mesh="fsdp=2")) == "fsdp=2"
