"""Which collectives a compiled program runs, read from its HLO text.

Compilers write one operation in several ways: as such, as a pair of start and done, or (TPU) spread
over fusions that all carry the same channel. A loop's body stands there once.
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

  Both branches of a condition count. Raises UserError for a loop whose length cannot be read.
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
    of_kind = [c for c in found if c.kind == kind]
    if of_kind:
      table[kind] = {
        "calls": sum(c.times for c in of_kind),
        "bytes": sum(c.size * c.times for c in of_kind),
        "sent": sum(c.sent() for c in of_kind),
      }
  return table


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  """{name: its instructions} and the name of the entry."""
  bodies, entry, current = {}, "", None
  for line in hlo.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      current = bodies.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif line == "}":  # a kernel's metadata may be several lines, with braces of its own
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
  size = sum(
    math.prod(int(n) for n in dims.split(",") if n) * _item_size(dtype)
    for dtype, dims in _ARRAY.findall(shape)
  )
  # What a start gives names its operands too.
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


# Axes of a mesh, as 'a'=2,'b'=8, and those that a group goes along; devices in the order of their
# ids, or of a transposed array of them. Or: groups, devices of one, the (transposed) array of ids.
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? \{([^}:]*)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")


def _groups(line: str) -> np.ndarray:
  """[groups, devices]: ids of the devices of each group; of a permute, its pairs."""
  if pairs := _PAIRS.search(line):
    return np.array([pair.split(",") for pair in re.findall(r"\d+,\d+", pairs[1])], int)
  if mesh := _MESH.search(line):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    inner = re.findall(r"'(\w+)'", mesh[3])
    order = [list(sizes).index(name) for name in sizes if name not in inner]
    order += [list(sizes).index(name) for name in inner]
    ids = _ids(mesh[2] or str(list(sizes.values()))).reshape(list(sizes.values()))
    return ids.transpose(order).reshape(-1, math.prod(sizes[name] for name in inner))
  if iota := _IOTA.search(line):
    return _ids(iota[2]).reshape(-1, int(iota[1]))
  if listed := _LISTED.search(line):
    return np.array([ids.split(",") for ids in re.findall(r"\{([\d,]+)\}", listed[1])], int)
  raise UserError(f"a collective of the compiled program has unknown groups: {line[:300]}")


def _ids(text: str) -> np.ndarray:
  """The ids 0, 1, .. as XLA writes an array of them: [4,8], or transposed [4,8]T(1,0)."""
  sizes, _, order = text.partition("T")
  sizes, order = ([int(n) for n in re.findall(r"\d+", part)] for part in (sizes, order))
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(order) if order else ids
