"""Checksums of arrays that do not depend on how the arrays are sharded.

Neither orbax nor the format that it writes (zarr3 in OCDBT) checks the numbers: CRC-32C covers the
indices of the files, and zstd decodes many a damaged block. Orbax has no option for zarr3's codec
crc32c, and a checksum of files or shards would change with the mesh.

So a checksum is a sum over the elements: their bits times a weight of their position, modulo 2^32.
A sum can be taken shard by shard, on each process for its own shards. Weights are odd, so that
every change of a single element changes the sum; of other damage one in 2^32 is not noticed.
"""

import concurrent.futures
import os
from collections.abc import Sequence

import jax
import numpy as np

from srl_jax import hosts

THREADS = os.cpu_count() or 1


def checksums(tree) -> list[int]:
  """The checksum of each leaf of a tree of arrays, in the order of jax.tree.leaves.

  With several processes all must call this. A thread sums 6 to 12 GB a second.
  """
  leaves = jax.tree.leaves(tree)
  with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
    parts = list(threads.map(_sum_of_shards, leaves))
  # Each process has summed its own shards. The processes exchange JSON, which has text keys only.
  sums = hosts.sum_counts({str(i): part for i, part in enumerate(parts)})
  return [int(sums[str(i)]) % 2**32 for i in range(len(leaves))]


def differing(tree, expected: Sequence[int]) -> list[str]:
  """Returns the names of the leaves with other checksums than expected; a collective."""
  paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
  found = checksums(tree)
  if len(found) != len(expected):
    return [f"{len(found)} arrays instead of {len(expected)}"]
  names = []
  for path, now, before in zip(paths, found, expected):
    if now != before:
      names.append(jax.tree_util.keystr(path, simple=True, separator="."))
  return names


def _sum_of_shards(leaf: jax.Array | np.ndarray) -> int:
  """The weighted sum over the shards of this process that no other process counts too."""
  # numpy arrays are equal on all processes, so process 0 alone counts them.
  if not isinstance(leaf, jax.Array):
    whole = (slice(None),) * np.ndim(leaf)
    return _weighted_sum(np.asarray(leaf), whole) if hosts.is_writer() else 0
  total = 0
  for shard in leaf.addressable_shards:
    if shard.replica_id == 0:  # exactly one device of all processes has replica 0 of a shard
      total += _weighted_sum(np.asarray(shard.data), shard.index)
  return total


def _weighted_sum(part: np.ndarray, index: tuple[slice, ...]) -> int:
  """The sum over `part`, which is array[index] of the whole array.

  The weight of the element (i, j, k) is w0(i) w1(j) w2(k), so one axis is summed after another. The
  last axis is summed last, because adding rows up is twice as fast as adding up in a row.
  """
  # Integers of the element's size; all arithmetic below wraps around at 2^32.
  bits = part.view(f"u{part.dtype.itemsize}").astype(np.uint32, copy=False)
  axes = list(range(part.ndim))
  for axis in axes[-2::-1] + axes[-1:]:
    start = index[axis].start or 0  # the weight depends on the position in the whole array
    weights = _weights(axis, start, start + part.shape[axis])
    bits = np.einsum("...ij,i->...j" if bits.ndim > 1 else "j,j->", bits, weights)
  return int(bits)


def _weights(axis: int, start: int, stop: int) -> np.ndarray:
  """Odd uint32 weights of the positions start, ..., stop - 1 of an axis (MurmurHash3's mixer)."""
  x = np.arange(start, stop, dtype=np.uint32) + np.uint32((axis + 1) * 0x9E3779B9 % 2**32)
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return (x ^ (x >> 16)) | np.uint32(1)
