"""How long the device waits for the host in the quickstart's steady state, from JAX's profiler.

  python -m benchmarks.gap             two minutes; prints a Markdown table

Trains the quickstart on this machine's CPU and traces steps 201 to 260, when all its programs have
been compiled. The device is busy while a program runs, on whichever thread; the rest of a step is
the host's gap: scoring, filtering, packing, writing, and what Python and JAX take to start them.
"""

import argparse
import pathlib
import tempfile
import threading
import time

import jax

from configs import common, quickstart
from srl_jax.learner import rl
from srl_jax.policy.sharding import make_mesh

# What a thread does for a program: small ones run in the thread that starts them, parts of large
# ones in XLA's pool.
PROGRAM = "ThunkExecutor::Execute"


def steps_made(workdir: pathlib.Path) -> int:
  file = workdir / "metrics.jsonl"
  return file.read_text().count("\n") if file.exists() else 0


def trace_steps(workdir: pathlib.Path, folder: pathlib.Path, first: int, last: int) -> None:
  """Waits for the run to get there and traces it from step `first` to `last`."""
  while steps_made(workdir) < first:
    time.sleep(0.01)
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # it would slow the host down, which is what is measured
  jax.profiler.start_trace(str(folder), profiler_options=options)
  while steps_made(workdir) < last:
    time.sleep(0.01)
  jax.profiler.stop_trace()


def programs(folder: pathlib.Path) -> list[tuple[float, float]]:
  """(start, end) of every run of a program or of a part of one, in seconds, by start."""
  file = next(folder.rglob("*.xplane.pb"))
  lines = [
    line for plane in jax.profiler.ProfileData.from_file(str(file)).planes for line in plane.lines
  ]
  return sorted(
    (event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9)
    for line in lines
    for event in line.events
    if event.name.startswith(PROGRAM)
  )


def gaps(runs: list[tuple[float, float]]) -> list[float]:
  """Seconds between two programs, where none runs."""
  found, end = [], runs[0][1]
  for start, stop in runs:
    if start > end:
      found.append(start - end)
    end = max(end, stop)
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--first", type=int, default=200, help="step after which the trace begins")
  parser.add_argument("--last", type=int, default=260, help="step with which it ends")
  given = parser.parse_args()
  config = quickstart.get_config(f"steps={given.last + 20}")
  config.eval.benchmark, config.train.eval_every, config.train.save_every = "", 0, 10**6
  with tempfile.TemporaryDirectory() as name:
    workdir, folder = pathlib.Path(name) / "run", pathlib.Path(name) / "trace"
    steps = given.first, given.last
    tracer = threading.Thread(target=trace_steps, args=(workdir, folder, *steps), daemon=True)
    tracer.start()
    with jax.set_mesh(make_mesh(common.mesh_spec(config))):
      rl.train(config, workdir)
    tracer.join()
    runs = programs(folder)
  found = gaps(runs)
  wall = runs[-1][1] - runs[0][0]
  steps = given.last - given.first
  print(f"\n| steps traced | ms a step | host gap | longest gap |\n{'|---' * 4}|")
  print(
    f"| {given.first + 1}-{given.last} | {1e3 * wall / steps:.0f} | "
    f"{100 * sum(found) / wall:.1f} % | {1e3 * max(found):.1f} ms |"
  )


if __name__ == "__main__":
  main()
