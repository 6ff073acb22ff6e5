"""Who used the processor: a peer's processes, and everybody else. From Linux's /proc."""

import os
import pathlib

_TICK = os.sysconf("SC_CLK_TCK")


def of_group(group: int) -> float:
  """CPU seconds so far of the living processes of a process group."""
  ticks = 0
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = path.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
      continue
    if int(fields[2]) == group:
      ticks += int(fields[11]) + int(fields[12])  # user and system
  return ticks / _TICK


def of_machine() -> float:
  """CPU seconds so far of everything on this machine."""
  line = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()
  user, nice, system, _, _, irq, softirq, *_ = map(int, line[1:])
  return (user + nice + system + irq + softirq) / _TICK


def model_name() -> str:
  """The processor's name."""
  lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "unknown")
