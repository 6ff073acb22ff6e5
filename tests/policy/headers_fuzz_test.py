"""Damaged headers of safetensors files: the same weights, or a UserError, never other weights.

tests/fuzzing.py has the settings.
"""

import copy
import json
import struct

import hypothesis
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import save_file

from srl_jax.errors import UserError
from srl_jax.policy import hf_files
from srl_jax.policy.model import ModelConfig, init
from srl_jax.policy.weights import load_hf, save_hf
from tests.fuzzing import fuzzed
from tests.stopwatch import Stopwatch

TENSORS = {
  "model.embed_tokens.weight": np.arange(48, dtype=np.float32).reshape(8, 6),
  "model.layers.0.mlp.up_proj.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
  "model.layers.1.mlp.up_proj.weight": np.arange(24, dtype=np.float32).reshape(6, 4),
  "model.norm.weight": np.ones(6, ml_dtypes.bfloat16),
  "scale": np.ones(2, ml_dtypes.bfloat16),
}
VALUES = [None, True, -1, 0, 1, 1.5, 2**63, 10**400, "F16", "BF16", "F32", "I32", [], {}, [[]]]
VALUES += ["\ud800", [0, 0], [8, 6], [10**400, 10**400], [-1, -1], {"dtype": "F32"}]
DEEP = b"[" * 100_000


def parts(path):
  """(header as bytes, the tensors' bytes) of a file."""
  data = path.read_bytes()
  (length,) = struct.unpack("<Q", data[:8])
  return data[8 : 8 + length], data[8 + length :]


def write(path, header: bytes, tensors: bytes, length=None):
  size = len(header) if length is None else length
  path.write_bytes(struct.pack("<Q", size) + header + tensors)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
  """A folder with a sound file."""
  folder = tmp_path_factory.mktemp("sound")
  save_file(TENSORS, folder / "model.safetensors", metadata={"format": "pt"})
  return folder


def entry(name, **changes):
  """A change of the header as JSON."""

  def change(header):
    header[name] |= changes

  return change


def rename(header):
  header["model.norm\nweight"] = header.pop("model.norm.weight")


DAMAGED = {
  "an overlap": entry("model.layers.1.mlp.up_proj.weight", data_offsets=[0, 96]),
  "beyond the file": entry("scale", data_offsets=[10**6, 10**6 + 4]),
  "another size": entry("model.norm.weight", shape=[5]),
  "another type of the size": entry("model.norm.weight", dtype="F16"),
  "an unknown type": entry("model.norm.weight", dtype="Q4"),
  "a negative size": entry("model.norm.weight", shape=[-2, -3]),
  "no whole number": entry("model.norm.weight", shape=[6.0]),
  "no shape": entry("model.norm.weight", shape=None),
  "a gap": lambda header: header.pop("model.norm.weight"),
  "a name of two lines": rename,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_read_headers_refuses_a_damaged_header(sound, tmp_path, name):
  header, tensors = parts(sound / "model.safetensors")
  header = json.loads(header)
  DAMAGED[name](header)
  write(tmp_path / "model.safetensors", json.dumps(header).encode(), tensors)
  with pytest.raises(UserError, match=str(tmp_path)):
    hf_files.read_headers(tmp_path)


def test_read_headers_refuses_a_repeated_name(sound, tmp_path):
  header, tensors = parts(sound / "model.safetensors")
  for one in (header.replace(b"layers.1", b"layers.0"), DEEP, b"{" * 9):
    write(tmp_path / "model.safetensors", one, tensors)
    with pytest.raises(UserError, match=str(tmp_path)):
      hf_files.read_headers(tmp_path)


def test_read_headers_refuses_a_tensor_in_two_files(sound, tmp_path):
  save_file({"scale": TENSORS["scale"]}, tmp_path / "b.safetensors")
  write(tmp_path / "a.safetensors", *parts(sound / "model.safetensors"))
  weight_map = {"scale": "b.safetensors", "model.norm.weight": "a.safetensors"}
  (tmp_path / hf_files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
  with pytest.raises(UserError, match="scale .*a.safetensors"):
    hf_files.read_headers(tmp_path)


@pytest.mark.parametrize("file", ["../a.safetensors", "/dev/zero", "a.bin", 3, None])
def test_read_headers_refuses_an_index_of_other_folders(tmp_path, file):
  (tmp_path / hf_files.INDEX).write_text(json.dumps({"weight_map": {"scale": file}}))
  with pytest.raises(UserError, match="no safetensors file|no weight_map"):
    hf_files.read_headers(tmp_path)


@st.composite
def damaged(draw, header, tensors):
  """(header, length of it, tensors' bytes): bytes changed, or values of the JSON."""
  length = None
  kind = draw(st.sampled_from(["bytes", "bytes", "json", "json", "length", "cut"]))
  if kind == "bytes":
    changed = bytearray(header)
    for _ in range(draw(st.integers(1, 4))):
      changed[draw(st.integers(0, len(header) - 1))] = draw(st.integers(0, 255))
    header = bytes(changed)
  elif kind == "json":
    found = json.loads(header)
    for _ in range(draw(st.integers(1, 3))):
      name = draw(st.sampled_from(sorted(found)))
      key = draw(st.sampled_from(["dtype", "shape", "data_offsets", None]))
      value = draw(st.one_of(st.sampled_from(VALUES), st.lists(st.integers(-2, 250), max_size=3)))
      if key and isinstance(found[name], dict):
        found[name][key] = copy.deepcopy(value)
      else:
        found[name] = copy.deepcopy(value)
    header = json.dumps(found).encode()
  elif kind == "length":
    length = draw(st.one_of(st.integers(0, 2000), st.integers(0, 2**64 - 1)))
  else:
    tensors = draw(st.sampled_from([tensors[:-2], tensors + b"\0", tensors[2:], b""]))
  return header, length, tensors


@pytest.mark.slow
def test_load_hf_of_damaged_headers_loads_the_same_or_refuses(tmp_path, capsys):
  """read_headers, then load_hf, which compares names and shapes with config.json."""
  config = ModelConfig(11, 8, 12, 2, 2, 1, 4)
  save_hf(config, init(config, 0), tmp_path / "model")
  path = tmp_path / "model" / hf_files.WEIGHTS
  weights = lambda: [np.asarray(x).tobytes() for x in jax.tree.leaves(load_hf(path.parent)[1])]
  expected, stopwatch, loaded = weights(), Stopwatch(), 0

  @fuzzed()
  @hypothesis.given(damaged(*parts(path)))
  def check(case):
    nonlocal loaded
    write(path, case[0], case[2], case[1])
    try:
      with stopwatch:
        hf_files.read_headers(path.parent)
      assert weights() == expected
      loaded += 1
    except UserError as error:
      str(error).encode()  # it can be printed

  with capsys.disabled():
    check()
    print(f"{loaded} were loaded; worst time of a header: {stopwatch.worst:.4f} s")
