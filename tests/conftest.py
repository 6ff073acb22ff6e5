"""Settings that must stand before JAX starts, and the paths that several tests share."""

import os
import pathlib

import pytest

TESTS = pathlib.Path(__file__).resolve().parent
SHARED = TESTS.parent.parent / "shared"

# Eight simulated devices: mesh tests need them, all others use the first one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# XLA compiles are the slow part of the suite: keep them between runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(TESTS / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture(scope="session")
def shared():
  """Folder of real data files; the project stands alone, so tests that need it may skip."""
  if not SHARED.is_dir():
    pytest.skip("needs the folder ../shared (real data files), which is not beside this checkout")
  return SHARED
