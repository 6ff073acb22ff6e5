"""Figures of the hardware that programs are compiled for; none of it has to be present.

The compiler for it is installed on first use, into a separate environment.
"""

import importlib.metadata
import os
import pathlib
import site
import subprocess
import sys
import venv
from typing import NamedTuple

import jax
from jax.experimental import topologies
from packaging.requirements import Requirement

from srl_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-plan"
GIB = 2**30


class Chip(NamedTuple):
  """Figures of a device.

  Fields: memory, bytes that programs may use; hbm, bytes/s of its memory; link, bytes/s that a
  device sends in a collective inside its node or slice.
  """

  memory: float
  hbm: float
  link: float


# memory: TPUs, what the compiler allows; H100, the 75 % of 79.1 GiB that JAX takes by default
# (XLA_PYTHON_CLIENT_MEM_FRACTION). Rates are nominal, from NVIDIA's H100 data sheet (NVLink: 450
# GB/s each way), Google's Cloud TPU pages and Austin et al., "How to Scale Your Model", part 2: one
# axis of the torus, both ways, however many axes a mesh axis is laid over.
H100 = Chip(0.75 * 84942979072, 3.35e12, 450e9)
H200 = Chip(0.75 * 150754820096, 4.8e12, 450e9)  # 140.4 GiB
V5E = Chip(15.75 * GIB, 0.81e12, 90e9)
V5P = Chip(95.74 * GIB, 2.77e12, 180e9)
V6E = Chip(31.25 * GIB, 1.64e12, 180e9)


class Topology(NamedTuple):
  """A set of devices: platform (cuda | tpu), the name that JAX knows it by, devices, chip.

  For cuda the name is partitions x hosts x devices of a host.
  """

  platform: str
  name: str
  devices: int
  chip: Chip


TOPOLOGIES = {
  "h100x1": Topology("cuda", "1x1x1", 1, H100),
  "h200x1": Topology("cuda", "1x1x1", 1, H200),
  "h100x4": Topology("cuda", "1x1x4", 4, H100),  # the trainer of launch/node.sh
  "h100x8": Topology("cuda", "1x1x8", 8, H100),
  "h100x32": Topology("cuda", "1x4x8", 32, H100),
  "v5e-8": Topology("tpu", "v5e:2x4", 8, V5E),
  "v5e-16": Topology("tpu", "v5e:4x4", 16, V5E),
  "v5p-128": Topology("tpu", "v5p:4x4x4", 64, V5P),  # Google counts cores: 64 chips
  "v6e-256": Topology("tpu", "v6e:16x16", 256, V6E),
}


# The compiler for a platform: its package, the extra of JAX that brings it, its size.
COMPILERS = {
  "tpu": ("libtpu", "tpu", "0.7 GB"),
  "cuda": ("jax-cuda12-plugin", "cuda12", "about 5 GB"),
}


def installed(platform: str) -> bool:
  """Whether this Python has the compiler of a platform, in a version that its JAX works with."""
  package, _, _ = COMPILERS[platform]
  try:
    found = importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return False
  wanted = map(Requirement, importlib.metadata.requires("jax"))
  return any(r.name == package and r.specifier.contains(found) for r in wanted)


def install(platform: str) -> pathlib.Path:
  """Puts the compiler into .venv-plan, which sees this Python's packages too.

  Returns the interpreter there. Raises UserError when the compiler cannot be installed.
  """
  python = ENVIRONMENT / "bin" / "python"
  if not python.exists():
    venv.create(ENVIRONMENT, with_pip=False)
  # A .pth file adds this Python's packages, so that only the compiler is installed anew.
  library = next(ENVIRONMENT.glob("lib/python*/site-packages"))
  (library / "caller.pth").write_text("\n".join(site.getsitepackages()) + "\n")
  check = f"from {__name__} import installed; raise SystemExit(not installed({platform!r}))"
  if subprocess.run([python, "-c", check], cwd=ROOT).returncode:
    _, extra, size = COMPILERS[platform]
    wanted = f"jax[{extra}]=={importlib.metadata.version('jax')}"
    print(f"installing {wanted}, {size}, into {ENVIRONMENT}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", wanted]
    if subprocess.run(command).returncode:
      raise UserError(
        f"{wanted} could not be installed into {ENVIRONMENT} (pip's message is above); programs "
        f"for {platform} cannot be compiled without it"
      )
  return python


def prepare(platform: str) -> None:
  """Configures JAX to compile for a platform that is not present.

  Call it before JAX starts a backend, which its first array or device does.
  """
  # An executable for absent hardware cannot be loaded from the compilation cache.
  jax.config.update("jax_enable_compilation_cache", False)
  jax.config.update("jax_platforms", "cpu")
  if platform == "tpu":  # libtpu would query a TPU VM's metadata server
    os.environ |= dict(
      TPU_SKIP_MDS_QUERY="1",
      TPU_ACCELERATOR_TYPE="v5litepod-16",
      TPU_WORKER_HOSTNAMES="localhost",
      ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
  else:
    # Autotuning times kernels on the device, and there is none.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()


def devices(topology: Topology) -> list:
  """The devices of a topology, to make a mesh of; no program can run on them."""
  if topology.platform == "tpu":
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices
  target = pathlib.Path(__file__).with_name("h100_sxm.txtpb").read_text()
  return topologies.get_topology_desc(
    platform="cuda", target_config=target, topology=topology.name
  ).devices
