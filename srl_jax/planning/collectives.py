"""Which collectives a compiled program runs, read from its HLO text.

Compilers write one operation in several ways: as such, as a pair of start and done, or (TPU) spread
over fusions that all carry the same channel. The text has the body of a loop once.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from srl_jax.errors import UserError

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(
  r"(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)"
  r"|branch_computations=\{([^}]*)\}"
)
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
  """One collective operation of a program.

  Fields: kind, of KINDS; size, bytes of the whole array (what an all-gather gives, what a
  reduce-scatter takes); devices, how many take part in a group; times, how often a call runs it;
  across, whether a group reaches over the border of a node.
  """

  kind: str
  size: int
  devices: int
  times: int
  across: bool = False

  def sent(self) -> float:
    """Bytes that each device sends in one call, by the ring algorithm."""
    share = (self.devices - 1) / self.devices
    rounds = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
    return rounds * self.size * self.times


def collectives(hlo: str, per_node: int = 0) -> list[Collective]:
  """The collectives of a program, those of one channel once.

  Args:
    hlo: text of the compiled module.
    per_node: devices of a node, in the order of their ids; 0 where all are one slice.

  Both branches of a condition count. Raises UserError for a loop with a length that cannot be read.
  """
  bodies, entry = _computations(hlo)
  times = _times(bodies, entry)
  found: dict[tuple, Collective] = {}
  for name, count in times.items():
    for line in bodies[name]:
      match = _COLLECTIVE.search(line)
      if match:
        one = _collective(line, match, count, per_node)
        channel = re.search(r"channel_id=(\d+)", line)
        # Channels are unique among operations of one kind only.
        found.setdefault((*one, channel[0] if channel else line), one)
  return list(found.values())


def by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
  """{kind: {calls, bytes (of whole arrays), sent}}, of one call of the program."""
  table = {}
  for kind in KINDS:
    for collective in found:
      if collective.kind == kind:
        sums = table.setdefault(kind, {"calls": 0, "bytes": 0, "sent": 0})
        sums["calls"] += collective.times
        sums["bytes"] += collective.size * collective.times
        sums["sent"] += collective.sent()
  return table


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  """{name: its instructions} and the name of the entry."""
  bodies, entry, current = {}, "", None
  for line in hlo.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      current = bodies.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif line == "}":  # alone on its line; braces inside a kernel's metadata are not
      current = None
    elif current is not None:
      current.append(line)
  return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
  """How often a call of the program runs each computation that it reaches."""
  times: dict[str, int] = {}

  def visit(name: str, count: int) -> None:
    times[name] = max(times.get(name, 0), count)
    for line in bodies[name]:
      loop = _LOOP.search(line)
      trips = _trips(line, bodies[loop[1]]) if loop else 1
      for callee in _callees(line):
        visit(callee, count * (trips if loop and callee == loop[2] else 1))

  visit(entry, 1)
  return times


def _callees(line: str) -> Iterator[str]:
  for one, several in _CALLED.findall(line):
    yield from ([one] if one else re.findall(r"[\w.\-]+", several))


def _trips(line: str, condition: list[str]) -> int:
  known = _TRIPS.search(line)
  if known:
    return int(known[1])
  limits = re.findall(r"constant\((\d+)\)", "\n".join(condition))
  if len(limits) != 1:
    raise UserError(f"the compiled program has a loop whose length cannot be read: {line[:200]}")
  return int(limits[0])


def _collective(line: str, match: re.Match, times: int, per_node: int) -> Collective:
  shape, kind, start = match.groups()
  groups = _groups(line)
  devices = groups.shape[1]
  size = 0
  for dtype, dimensions in _ARRAY.findall(shape):
    size += math.prod(_numbers(dimensions)) * _item_size(dtype)
  # The result type of a start includes the operands.
  if kind in ("all-gather", "reduce-scatter") and start:
    size = size * devices // (devices + 1)
  elif kind == "collective-permute" and start:
    size //= 2
  elif kind == "reduce-scatter":
    size *= devices
  across = per_node > 0 and bool((groups // per_node != groups[:, :1] // per_node).any())
  return Collective(kind, size, devices, times, across)


def _item_size(dtype: str) -> int:
  return 1 if dtype == "pred" else max(1, int(re.search(r"\d+", dtype)[0]) // 8)


# XLA writes the groups of a collective in four ways: as the axes of a mesh ('a'=2,'b'=8), the axes
# that a group spans and, if they are not 0, 1, 2, ..., the device ids; as the number of groups, the
# size of one and an array of ids; as lists of ids; and those of a permute as pairs of ids.
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? \{([^}:]*)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")


def _groups(line: str) -> np.ndarray:
  """[groups, devices]: ids of the devices of each group; of a permute, its pairs."""
  if pairs := _PAIRS.search(line):
    return _listed(re.findall(r"\d+,\d+", pairs[1]))
  if mesh := _MESH.search(line):
    return _groups_of_mesh(axes=mesh[1], ids=mesh[2], inner=mesh[3])
  if iota := _IOTA.search(line):
    return _ids(iota[2]).reshape(-1, int(iota[1]))
  if listed := _LISTED.search(line):
    return _listed(re.findall(r"\{([\d,]+)\}", listed[1]))
  raise UserError(f"a collective of the compiled program has unknown groups: {line[:300]}")


def _listed(groups: list[str]) -> np.ndarray:
  return np.array([ids.split(",") for ids in groups], int)


def _groups_of_mesh(axes: str, ids: str | None, inner: str) -> np.ndarray:
  """[groups, devices] of a mesh: a group has the devices along the axes in `inner`."""
  names, sizes = [], []
  for name, size in re.findall(r"'(\w+)'=(\d+)", axes):
    names.append(name)
    sizes.append(int(size))
  inner_axes = list(map(names.index, re.findall(r"'(\w+)'", inner)))
  outer_axes = [axis for axis in range(len(names)) if axis not in inner_axes]
  # One dimension for each axis, those of a group last: flattened, they are the columns.
  devices = _ids(ids or str(sizes)).reshape(sizes).transpose(outer_axes + inner_axes)
  return devices.reshape(-1, math.prod(sizes[axis] for axis in inner_axes))


def _ids(text: str) -> np.ndarray:
  """The ids 0, 1, .. as XLA writes an array of them: [4,8], or transposed [4,8]T(1,0)."""
  shape, _, transposed = text.partition("T")
  sizes, order = _numbers(shape), _numbers(transposed)
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(order) if order else ids


def _numbers(text: str) -> list[int]:
  return list(map(int, re.findall(r"\d+", text)))
