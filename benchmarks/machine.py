"""The machine that a figure was measured on."""

import os
import pathlib


def cores_and_memory() -> str:
  """Cores, processor and memory in a few words, from Linux's /proc."""
  lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
  return f"{os.cpu_count()} cores of {next(names, 'unknown')}, {memory:.0f} GiB"
