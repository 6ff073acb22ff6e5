"""Kernel time of an update on a GPU by kind of kernel, from a JAX profiler trace of one call."""

import collections
import gzip
import json
import pathlib
import re
import tempfile
from collections.abc import Callable

import jax

# The first pattern that is in a kernel's name gives its kind. nvjet and cutlass are cuBLAS's
# products, gemm_fusion Triton's; loop_, input_ and wrapped_ are fusions of XLA.
KINDS = {
  "attention, backward": r"(sdpa|fmha|flash).*(bprop|bwd|backward)",
  "attention, forward": r"sdpa|fmha|flash",
  "matrix products": r"nvjet|cutlass|gemm|cublas|splitK",
  "collectives": r"nccl|all_gather|all_reduce|reduce_scatter",
  "copies": r"memcpy|memset|^copy|^wrapped_transpose|dynamic_update_slice|dynamic_slice",
  "casts": r"convert",
  "gathers": r"gather|select|scatter",
  "reductions": r"reduce",
  "other elementwise": r"loop|wrapped|input|fusion",
}


def kind_of(kernel: str) -> str:
  """The kind of a kernel by its name."""
  for kind, pattern in KINDS.items():
    if re.search(pattern, kernel):
      return kind
  return "others"


def seconds_by_kind(events: list[dict]) -> dict[str, float]:
  """{kind: seconds} of the events of a trace (Chrome's format) that ran on a device's streams."""
  streams = set()
  for event in events:
    if event.get("name") == "thread_name" and "Stream" in event["args"]["name"]:
      streams.add((event["pid"], event["tid"]))
  found = collections.Counter()
  for event in events:
    if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams:
      found[kind_of(event["name"])] += event["dur"] / 1e6  # microseconds
  return dict(found.most_common())


def profile(run: Callable[[], object]) -> dict[str, float]:
  """Traces one call of `run`, which waits for its result; {} where the devices have no streams."""
  with tempfile.TemporaryDirectory() as name:
    with jax.profiler.trace(name):
      run()
    (path,) = pathlib.Path(name).rglob("*.trace.json.gz")
    return seconds_by_kind(json.loads(gzip.decompress(path.read_bytes()))["traceEvents"])
