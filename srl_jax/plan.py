"""Computes whether a config fits given hardware, and forecasts its speed, without that hardware.

  python -m srl_jax.plan --config=configs/srl_math.py --topology=h100x8
  python -m srl_jax.plan --config=configs/srl_math.py --topology=v5e-16 --json \\
      --config.batch.tokens_per_device=8192

The command compiles the programs of a run (micro-batch, optimiser step, log-prob pass, export of
the weights to vLLM servers) with the topology's compiler, and prints the memory per device,
forecasts of the step and of a push to the servers, and a verdict. Memory is the compiler's figure,
except for the built-in engine's copy of the weights (rollout.engine=builtin), which is computed
from their shapes; seconds are forecasts from the rates that are printed with them. Exit code 0: it
fits; 1: it does not; 2: bad input; 3: a crash.

The mesh is the config's if it has as many devices as the topology, else the topology's preset, or
fsdp over all its devices.
The compiler is installed into .venv-plan beside the code on first use: libtpu (0.7 GB) for TPUs,
JAX's CUDA plugin (about 5 GB) for H100s. A 7B model takes minutes of CPU time.
"""

import json
import math
import os
import pathlib
import sys
import traceback

import jax
from absl import flags as absl_flags
from absl import logging
from ml_collections import config_flags

from srl_jax import command_line, progress
from srl_jax import config as common
from srl_jax.data.tokenizer import load_tokenizer
from srl_jax.errors import UserError
from srl_jax.learner import limits
from srl_jax.planning import report, topologies
from srl_jax.policy.sharding import check_mesh, make_mesh, parse_mesh, shards

flags = command_line.own_flags()
_TOPOLOGY = flags.DEFINE_enum(
  "topology", None, list(topologies.TOPOLOGIES), "Hardware to plan for.", required=True
)
_PROMPT = flags.DEFINE_integer(
  "prompt_tokens", 1500, "Mean tokens of a prompt, for the forecast of a step.", 1
)
_RESPONSE = flags.DEFINE_integer(
  "response_tokens", 1000, "Mean tokens of a response, for the forecast of a step.", 1
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")


def main(argv: list[str]) -> None:
  del argv
  config = absl_flags.FLAGS.config
  if config is None:
    raise UserError("--config: name a config file, for example configs/srl_math.py")
  check(config)  # before a compiler is installed
  platform = topologies.TOPOLOGIES[_TOPOLOGY.value].platform
  # Without the compiler in this environment, the command starts again in the one that has it.
  if not topologies.installed(platform):
    python = topologies.install(platform)
    path = os.pathsep.join(filter(None, [str(topologies.ROOT), os.environ.get("PYTHONPATH")]))
    command = [str(python), "-m", "srl_jax.plan", *sys.argv[1:]]
    os.execve(python, command, os.environ | {"PYTHONPATH": path})
  topologies.prepare(platform)
  logging.set_verbosity(logging.ERROR)
  found = plan(config, _TOPOLOGY.value, _PROMPT.value, _RESPONSE.value)
  print(json.dumps(found, indent=1) if _JSON.value else report.text(found))
  sys.exit(0 if found["memory"]["fits"] else 1)


def plan(config, name: str, prompt_tokens: int, response_tokens: int) -> dict:
  """Returns the memory and the forecast of a run of `config` on a topology, as printed by --json.

  topologies.prepare must have run.

  Args:
    config: as for srl_jax.train.
    name: of topologies.TOPOLOGIES.
    prompt_tokens, response_tokens: mean lengths, for the forecast of a step.

  Raises:
    UserError: the config is invalid.
  """
  # Imported after topologies.prepare, and not before an installation that may fail.
  from srl_jax.planning import estimate, models, programs, push

  check(config)
  topology = topologies.TOPOLOGIES[name]
  spec = mesh_spec(config, name)
  devices = topologies.devices(topology)
  model_config = models.architecture(config.model, config.dtype).on_platform(devices[0].platform)
  check_mesh(spec, model_config.sizes())
  work = estimate.work_of(config, prompt_tokens, response_tokens)
  mesh = make_mesh(spec, devices)
  with jax.set_mesh(mesh):
    state = programs.state_of(config, model_config)
    rows = [state.shape.rows * shards("b"), state.shape.tokens]
    compiled = _compile(config, state, name)
    sampler = programs.sampler_bytes(config, state)
    if sampler:  # while new weights are loaded, the sampler holds two copies of them
      compiled["load"] = programs.loading(config, state)
      if config.method != "sft":
        compiled["sample"] = programs.sampling(config, state)
    found = estimate.memory(state, compiled, topology, sampler)
    peak = estimate.peak_flops(devices[0].device_kind)
    forecast, sizes = None, parse_mesh(spec)
    if found["fits"]:
      forecast = estimate.step(config, model_config, topology, work, sizes, compiled, peak)
    change = estimate.advice(config, found, sizes, model_config.sizes())
    hosts = len({device.process_index for device in devices})
    if forecast:
      forecast["host_s"] = estimate.host_seconds(work, hosts)
    link = estimate.LINK * topology.chip.link
    pushed = push.forecast(config, model_config, topology, hosts, link)
  return {
    "model": config.model,
    "topology": name,
    "devices": topology.devices,
    "chip": devices[0].device_kind,
    "mesh": spec,
    "engine": config.rollout.engine,
    "rows_shape": rows,
    "memory": found,
    "work": {"prompt_tokens": work.prompt_tokens, "response_tokens": work.response_tokens},
    "rates": estimate.rates(topology, peak),
    "step": forecast,
    "push": pushed,
    "change": change,
  }


def check(config) -> None:
  """Raises UserError for an invalid config, or one that does not fit its model."""
  from srl_jax.planning import models

  checked = config.copy_and_resolve_references()
  if checked.get("rollout", {}).get("servers") == "":
    checked.rollout.servers = "of the launcher"  # launch/run.sh fills them in; any value passes
  common.check(checked)
  # The data is not read. If it is not from the hub, its columns need not be named in the config.
  data = checked.data
  named = data.source != "hub" or data.fields.answer
  model = models.architecture(config.model, config.dtype)
  limits.check(checked, model, has_answers=bool(data.holdout and named))
  folder = pathlib.Path(config.model).expanduser()
  if (folder / "tokenizer.json").is_file():  # not needed here, but a run would reject a wrong one
    load_tokenizer(folder)


def _compile(config, state, name: str) -> dict:
  """Returns {name: Program} of all programs that a run calls."""
  from srl_jax.planning import programs

  compiled, calls = {}, programs.calls(config, state)
  line = progress.ProgressLine(len(calls), name="program", file=sys.stderr)  # stdout has the plan
  for call in calls:
    line.show(len(compiled), {"compiling": f"{call.name} for {name}"})
    compiled[call.name] = programs.compile_call(call)
  line.show(len(calls))
  return compiled


def mesh_spec(config, name: str) -> str:
  """Returns the mesh to plan for.

  The config's mesh if it has as many devices as the topology, else the preset with the topology's
  name, else fsdp over all devices.
  """
  spec, devices = common.mesh_spec(config), topologies.TOPOLOGIES[name].devices
  if math.prod(parse_mesh(spec).values()) == devices:
    return spec
  return common.MESHES.get(name, f"data=1,fsdp={devices},tensor=1")


def command() -> None:
  """Runs `main`; a crash keeps its traceback and exits with code 3."""
  try:
    command_line.run(main, flags.values)
  except Exception:  # Python's exit code would be 1, which means that the config does not fit
    traceback.print_exc()
    sys.exit(3)


if __name__ == "__main__":
  # Not with the other flags: overrides (--config.a.b=v) require absl's global flags, in which only
  # one command of a process may define --config.
  config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.")
  command()
