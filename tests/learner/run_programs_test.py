"""A run compiles its programs before its first step, once, and never again."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from srl_jax.learner import programs

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path):
  """An empty persistent cache, for this test alone."""
  wanted = {
    "jax_compilation_cache_dir": str(tmp_path / "cache"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {name: getattr(jax.config, name) for name in wanted}
  for name, value in wanted.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_counter_tells_compiled_from_loaded_programs(cache):
  counter = programs.Counter()
  try:
    function = lambda x: jnp.tanh(x) * 12345.0
    x = np.ones(3, np.float32)  # jnp.ones would be a program
    jax.block_until_ready(jax.jit(function)(x))
    first = counter.take()
    jax.clear_caches()
    jax.block_until_ready(jax.jit(function)(x))
    second = counter.take()
  finally:
    counter.close()
  assert first["programs_compiled"] == 1 and first["seconds_compile"] > 0
  assert second["programs_compiled"] == 0 and second["programs_loaded"] == 1
  assert counter.take()["programs_loaded"] == 0


def test_ahead_compiles_what_the_run_calls():
  shape = jax.ShapeDtypeStruct((5,), jnp.float32)
  function, said = jax.jit(lambda x: x * 54321.0), []
  programs.Ahead([programs.Call("f", function, (shape,))]).wait(said.append)
  counter = programs.Counter()
  try:
    jax.block_until_ready(function(np.ones(5, np.float32)))
    found = counter.take()
  finally:
    counter.close()
  assert found["programs_compiled"] == found["programs_loaded"] == 0


def test_ahead_raises_an_error_of_a_compilation():
  def broken(x):
    raise FloatingPointError("as traced")

  shape = jax.ShapeDtypeStruct((5,), jnp.float32)
  ahead = programs.Ahead([programs.Call("f", jax.jit(broken), (shape,))])
  with pytest.raises(FloatingPointError, match="as traced"):
    ahead.wait(print)


def test_use_cache_is_in_the_users_folder_by_default(monkeypatch, tmp_path):
  chosen = jax.config.jax_compilation_cache_dir
  assert chosen and programs.use_cache() is None  # tests/conftest.py has chosen
  names = ("jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  try:
    said = programs.use_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "srl_jax" / "programs")
    assert str(tmp_path / "srl_jax" / "programs") in said
    jax.config.update("jax_compilation_cache_dir", None)
    assert programs.use_cache() is None  # the folder exists: no second message
  finally:
    jax.config.update("jax_compilation_cache_dir", chosen)
    for name, value in before.items():
      jax.config.update(name, value)


SMALL = [
  "--config=configs/quickstart.py:steps=4",
  "--config.data.path=hard:12",
  "--config.data.holdout=4",
  "--config.rollout.width=32",
  "--config.batch.prompts=4",
  "--config.batch.tokens_per_device=1152",
  "--config.train.eval_every=2",
  "--config.eval.benchmark=arithmetic:4",
  # Both need log-probs beside the update's; rl_test.py counts the programs of a run without them.
  "--config.algorithm.kl=0.01",
  "--config.algorithm.steps_per_batch=2",
]
# The most programs of each name in a process that trains, validates and measures a benchmark.
LIMITS = dict(prefill=2, decode=2, decoding_copy=1, accumulate=3, apply=1, logprobs_of=1, zeros=1)


@pytest.mark.slow
def test_train_compiles_before_its_first_step_only(tmp_path):
  """Training, validation turn by turn and the benchmark, with the built-in sampler."""
  cache = tmp_path / "cache"
  env = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "XLA_FLAGS": "",
  }
  for name in ("first", "second"):
    command = [sys.executable, "-m", "srl_jax.train", *SMALL, f"--workdir={tmp_path / name}"]
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, timeout=600)
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    start, *rows = map(json.loads, lines)
    assert (start["programs_compiled"] > 0) == (name == "first")
    assert (start["programs_loaded"] > 0) == (name == "second")
    assert [row["programs_compiled"] + row["programs_loaded"] for row in rows] == [0] * 4
  compiled = collections.Counter()
  for path in cache.glob("jit_*-cache"):
    compiled[path.name.removeprefix("jit_").rsplit("-", 2)[0]] += 1
  assert {name: compiled[name] for name in LIMITS if compiled[name] > LIMITS[name]} == {}
  assert compiled["prefill"] and compiled["decode"] and compiled["accumulate"]
