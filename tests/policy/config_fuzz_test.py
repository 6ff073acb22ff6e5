"""Fuzzing of models' config.json; tests/fuzzing.py has the settings."""

import json
import pathlib
import random

import pytest

from srl_jax.errors import UserError
from srl_jax.policy import hf_files
from tests.fuzzing import CASES, SEED
from tests.stopwatch import Stopwatch

SOUND = pathlib.Path(__file__).resolve().parents[2] / "configs" / "miniature" / "config.json"
KEYS = ["head_dim", "layer_types", "max_window_layers", "use_sliding_window", "rope_parameters"]
KEYS += ["rope_scaling", "max_position_embeddings", "quantization_config", "hidden_act"]
JUNK = [None, True, False, 0, -1, 1, 2, 7.5, 1e400, float("nan"), 10**30, 2**31, 10**6, "", "x"]
JUNK += [[], [1], {}, {"a": 1}, ["sliding_attention"], {"rope_type": []}, {"rope_theta": "1"}]


def mutated(draw):
  """A config.json as bytes, with changed values of some keys or, one in five, changed bytes."""
  raw = json.loads(SOUND.read_text())
  for _ in range(draw.randrange(1, 4)):
    key = draw.choice([*raw, *KEYS])
    if draw.random() < 0.2:
      raw.pop(key, None)
    else:
      raw[key] = draw.choice(JUNK)
  data = bytearray(json.dumps(raw).encode())
  if draw.random() < 0.2:
    data[draw.randrange(len(data))] = draw.randrange(256)
  return bytes(data)


@pytest.mark.slow
def test_load_config_of_mutated_files_reads_or_refuses(tmp_path, capsys):
  draw, stopwatch, read = random.Random(SEED), Stopwatch(), 0
  for case in range(CASES):
    data = mutated(draw)
    (tmp_path / "config.json").write_bytes(data)
    try:
      with stopwatch:
        config = hf_files.load_config(tmp_path)
    except UserError:
      pass
    except Exception as error:
      pytest.fail(f"FUZZ_SEED={SEED} case {case}: {error!r} for {data!r}")
    else:
      read += 1
      assert config.head_dim % 2 == 0 and 0 < config.num_hidden_layers <= 1000
  assert stopwatch.worst < 0.5
  with capsys.disabled():
    print(f"\nFUZZ_SEED={SEED}: read {read}; worst time {stopwatch.worst:.4f} s")
