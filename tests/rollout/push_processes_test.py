"""One push of several real processes: which share a folder, who writes what, one that cannot.

Each process runs what follows `if __name__`.
"""

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
from collections import Counter

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from vllm_client_test import CONFIG
from vllm_processes import ROOT, free_port

from srl_jax import hosts
from srl_jax.errors import EngineError, UserError
from srl_jax.policy import model as policy_model
from srl_jax.policy.sharding import make_mesh
from srl_jax.policy.weights import load_hf, save_hf
from srl_jax.rollout import weights_folder
from srl_jax.rollout.weights_folder import WeightsFolder

MODEL = dataclasses.replace(CONFIG, num_hidden_layers=6)


def run(count, folder):
  """The results of `count` processes, as _process returns them."""
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(4 // count), "PYTHONPATH": str(ROOT)}
  environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
  environment["JAX_NUM_PROCESSES"] = str(count)
  processes = [
    subprocess.Popen(
      [sys.executable, __file__, str(folder)],
      env=environment | {"JAX_PROCESS_ID": str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(count)
  ]
  try:
    said = [process.communicate(timeout=240)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0] * count, said
  return [json.loads(text.splitlines()[-1]) for text in said]


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
  """(number of processes, their results, the folder with all roots) of all cases."""
  folder = tmp_path_factory.mktemp(f"of_{request.param}")
  save_hf(MODEL, policy_model.init(MODEL, 3), folder / "model")
  return request.param, run(request.param, folder), folder


@pytest.mark.slow
@pytest.mark.parametrize("case", ["shared float32", "shared bfloat16"])
def test_processes_with_one_root_write_the_weights_once(found, case):
  count, results, _ = found
  parts = [result[case] for result in results]
  # One server of the first process reads all of it; every process has written a part.
  for part in parts:
    assert part["equal"] and part["folder"] == parts[0]["folder"]
    assert part["bytes written"].keys() == set(map(str, range(count)))
  whole, written = parts[0]["bytes of the weights"], parts[0]["bytes written"].values()
  assert sum(written) == whole
  stack = 2 * 4 * 16 * 32  # the largest: an MLP's matrices of two layers in float32
  assert all(0 < own <= whole / count + stack for own in written)


@pytest.mark.slow
def test_processes_with_separate_roots_write_all_of_the_weights(found):
  count, results, _ = found
  for index, result in enumerate(results):
    part = result["local"]
    assert part["equal"] and f"root-{index}" in part["root"]
    assert part["bytes written"] == {"0": part["bytes of the weights"]}


@pytest.mark.slow
def test_roots_that_no_server_reads_stay_empty(found):
  """The last process alone has servers, in the root of the second half of the processes."""
  count, results, _ = found
  for index, result in enumerate(results):
    part = result["one half"]
    if index < count // 2:
      assert part == {"folder": "", "versions": 0}
    else:
      members = map(str, range(count - count // 2))
      assert part["equal"] and part["bytes written"].keys() == set(members)


@pytest.mark.slow
def test_a_process_that_cannot_write_ends_the_push_in_all(found):
  count, results, _ = found
  for index, result in enumerate(results):
    if index == 1:
      assert "weights of step 7 could not be written to" in result["full disk"]
      assert "Make room for the weights twice" in result["full disk"]
    else:
      message = "process 1 could not push its weights; its output has the reason"
      assert result["full disk"] == message
    assert "\n" not in result["full disk"]
    assert result["left after the full disk"] == ["lock", "version-6"]
    assert result["after the full disk"]["equal"]


@pytest.mark.slow
def test_a_root_that_cannot_be_used_ends_all_at_the_start(found):
  """In one line, where its process has servers; otherwise it is not needed."""
  _, results, _ = found
  for index, result in enumerate(results):
    assert result["no root"].startswith("process 1: rollout.weights_root: ")
    assert "\n" not in result["no root"]
    part = result["no root and no servers"]
    assert part["folder"] == "" if index == 1 else part["equal"]


@pytest.mark.slow
def test_nothing_is_left_after_close(found):
  assert not list(found[2].glob("root-*/*"))


BATCH = 20_000  # bytes: three batches of two layers


def read(files):
  """{name: array} of the files, which must not share a name."""
  tensors = {}
  for file in files:
    with safe_open(file, framework="np") as opened:
      for name in opened.keys():  # noqa: SIM118 - safe_open is no dict
        assert name not in tensors
        tensors[name] = opened.get_tensor(name)
  return tensors


def same_bits(tensors, wanted):
  bits = lambda x: np.ascontiguousarray(x).view(np.uint8)
  same = [np.array_equal(bits(tensors[name]), bits(wanted[name])) for name in wanted]
  return all(same) and tensors.keys() == wanted.keys()


def push_into(files, model, version, dtype, wanted):
  """What this process finds after a push into `files`; all processes call it."""
  name = files.write(model, version, dtype)
  if name:
    all_files = list((files.root / name).glob("*.safetensors"))
    wanted = {key: array.astype(ml_dtypes.finfo(dtype).dtype) for key, array in wanted.items()}
    # A process's files begin with its number among those that share the folder.
    written = Counter()
    for file in all_files:
      written[int(file.name[:5])] += sum(array.nbytes for array in read([file]).values())
    found = {
      "folder": name,
      "root": str(files.root),
      "equal": same_bits(read(all_files), wanted),
      "bytes written": dict(written),
      "bytes of the weights": sum(array.nbytes for array in wanted.values()),
    }
  else:
    found = {"folder": "", "versions": len(list(files.path.glob("version-*"))) if files.path else 0}
  hosts.barrier()  # before a process removes the folder
  return found


def _process(folder: pathlib.Path) -> dict:
  """The result of each case in this process."""
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  hosts.initialize()
  me, count = jax.process_index(), jax.process_count()
  for name in ["shared", "half-0", "half-1", me]:
    (folder / f"root-{name}").mkdir(exist_ok=True)
  hosts.barrier()
  wanted, found = load_file(folder / "model" / "model.safetensors"), {}
  weights_folder.BATCH_BYTES = BATCH

  def push(root, servers=True, dtype="float32"):
    files = WeightsFolder(str(folder / root), servers=servers)
    part = push_into(files, model, 1, dtype, wanted)
    files.close()
    return part

  with jax.set_mesh(make_mesh("data=2,fsdp=2")):
    model = load_hf(folder / "model")[1]
    for dtype in ("float32", "bfloat16"):
      found[f"shared {dtype}"] = push("root-shared", servers=me == 0, dtype=dtype)
    found["local"] = push(f"root-{me}")
    half = f"root-half-{int(me >= count // 2)}"
    found["one half"] = push(half, servers=me == count - 1)
    found |= _full_disk(folder / "root-shared", model, wanted)
    missing = "none" if me == 1 else f"root-{me}"
    try:
      WeightsFolder(str(folder / missing))
    except UserError as error:
      found["no root"] = str(error)
    found["no root and no servers"] = push(missing, servers=me != 1)
  return found


def _full_disk(root, model, wanted) -> dict:
  """Process 1 can write 1,000 bytes of version 7."""
  files, found = WeightsFolder(str(root)), {}
  files.keep_only(push_into(files, model, 6, "float32", wanted)["folder"])
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  if jax.process_index() == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    files.write(model, 7, "float32")
  except EngineError as error:
    found["full disk"] = str(error)
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  hosts.barrier()
  found["left after the full disk"] = sorted(path.name for path in files.path.iterdir())
  hosts.barrier()
  found["after the full disk"] = push_into(files, model, 7, "float32", wanted)
  files.close()
  return found


if __name__ == "__main__":
  print(json.dumps(_process(pathlib.Path(sys.argv[1]))), flush=True)
