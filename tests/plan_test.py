"""srl_jax.plan: bad input, and real compilers for hardware that is not present."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs import quickstart, srl_math
from srl_jax import command_line, plan
from srl_jax import config as common
from srl_jax.errors import UserError
from srl_jax.planning import topologies
from srl_jax.policy.sharding import parse_mesh

ROOT = Path(__file__).resolve().parents[1]


def run(*flags):
  command = [sys.executable, "-m", "srl_jax.plan", *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--topology=h100x8"], "--config: name a config file"),
    (["--config=configs/srl_math.py", "--topology=h100x9"], "should be one of <h100x1|"),
    (["--config=configs/srl_math.py", "--topology=v5e-8", "--prompt_tokens=0"], "prompt_tokens"),
  ],
)
def test_plan_refuses_bad_flags_in_one_line(flags, message):
  done = run(*flags)
  assert done.returncode == 2 and done.stdout == ""
  assert message in done.stderr and "Traceback" not in done.stderr


def test_check_refuses_lengths_beyond_the_models_positions():
  """Qwen2.5-Math has 4,096; the values of the message fit."""
  config = srl_math.get_config()
  config.model = "Qwen/Qwen2.5-Math-7B"
  with pytest.raises(UserError, match="max_position_embeddings, 4096") as error:
    plan.check(config)
  for key, value in re.findall(r"(\w+\.\w+)=(\d+)", str(error.value)):
    config.update_from_flattened_dict({key: int(value)})
  plan.check(config)
  config.data.max_prompt_tokens += 1
  with pytest.raises(UserError, match="max_position_embeddings"):
    plan.check(config)


def test_check_refuses_a_tokenizer_beyond_the_embedding(tmp_path):
  config = quickstart.get_config()
  for file in (ROOT / "configs" / "miniature").glob("*.json"):
    shutil.copy(file, tmp_path)
  config.model = str(tmp_path)
  plan.check(config)
  raw = json.loads((tmp_path / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(raw | {"vocab_size": 38}))
  with pytest.raises(UserError, match="vocab_size=38"):
    plan.check(config)


def test_mesh_spec_of_every_topology():
  """Each has a preset of its size or, v5e-8, the size of the configs' own mesh."""
  config = srl_math.get_config()
  for name, topology in topologies.TOPOLOGIES.items():
    sizes = parse_mesh(plan.mesh_spec(config, name)).values()
    assert math.prod(sizes) == topology.devices


def test_mesh_spec_keeps_the_configs_mesh_where_it_fits():
  config = srl_math.get_config()
  config.mesh = "data=2,fsdp=4,tensor=2"
  assert plan.mesh_spec(config, "v5e-16") == "data=2,fsdp=4,tensor=2"
  assert plan.mesh_spec(config, "h100x32") == common.MESHES["h100x32"]
  # There is no preset of this name.
  assert plan.mesh_spec(config, "v5e-8") == "data=1,fsdp=8,tensor=1"


def test_command_of_a_crash_exits_with_3(monkeypatch, capsys):
  def crash(*_):
    raise RuntimeError("of the compiler")

  monkeypatch.setattr(command_line, "run", crash)
  with pytest.raises(SystemExit) as ended:
    plan.command()
  assert ended.value.code == 3 and "RuntimeError: of the compiler" in capsys.readouterr().err


def test_plan_needs_no_server_addresses(monkeypatch):
  """A launcher starts them; what else is wrong with the config is still found."""
  config = srl_math.get_config()
  config.rollout.engine = "vllm"

  def reached(topology):
    raise ConnectionError("the config is sound")

  monkeypatch.setattr(topologies, "devices", reached)
  with pytest.raises(ConnectionError):
    plan.plan(config, "h100x8", 1500, 1000)
  assert config.rollout.servers == ""
  config.rollout.samples = 1
  with pytest.raises(ValueError, match="rollout.samples"):
    plan.plan(config, "h100x8", 1500, 1000)


def planned(name, *flags):
  """Returns (exit code, output of --json) for the 7B config on a topology."""
  flags = ("--config.rollout.engine=vllm", *flags)
  done = run("--config=configs/srl_math.py", f"--topology={name}", "--json", *flags)
  if "could not be installed" in done.stderr:
    pytest.skip(f"the compiler for {name} cannot be installed: {done.stderr.splitlines()[-1]}")
  assert done.returncode in (0, 1), done.stderr[-2000:]
  return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_plan_fits_7b_on_16_small_tpus():
  """All 28 layers with Google's own compiler, libtpu (0.7 GB, installed on first use)."""
  code, found = planned("v5e-16", "--config.batch.tokens_per_device=8192")
  memory = found["memory"]
  assert code == 0 and memory["fits"]
  assert memory["parameters"] == pytest.approx(4 * 7_615_616_512 / 16, rel=1e-3)
  assert 12 * 2**30 < memory["peak"] < memory["limit"] < 16 * 2**30


@pytest.mark.slow
def test_plan_refuses_7b_on_8_small_tpus():
  code, found = planned("v5e-8", "--config.batch.tokens_per_device=8192")
  assert code == 1 and not found["memory"]["fits"] and found["step"] is None
  assert found["memory"]["peak"] > found["memory"]["limit"]
  assert any(line.startswith("mesh = ") for line in found["change"])


@pytest.mark.slow
def test_plan_fits_7b_on_a_node_of_h100s():
  """Only where JAX's CUDA plugin is: it is about 5 GB."""
  python = topologies.ENVIRONMENT / "bin" / "python"
  check = (
    "from srl_jax.planning.topologies import installed; raise SystemExit(not installed('cuda'))"
  )
  there = python.exists() and not subprocess.run([python, "-c", check], cwd=ROOT).returncode
  if not there and not topologies.installed("cuda"):
    pytest.skip("needs JAX's CUDA plugin (about 5 GB); srl_jax.plan installs it")
  code, found = planned("h100x8")
  assert code == 0 and found["memory"]["peak"] < 40 * 2**30
