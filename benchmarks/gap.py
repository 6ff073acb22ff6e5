"""How long the device waits for the host in the quickstart's steady state, from JAX's profiler.

  python -m benchmarks.gap             two minutes; prints Markdown tables

Trains the quickstart on this machine's CPU and traces steps 201 to 260, when all its programs have
been compiled. The device is idle while no program runs, on whichever thread. The host's gap is what
of this passes before a program has been handed over to JAX: scoring, filtering, packing, writing,
and what Python and JAX take to start it. The rest XLA takes to begin, or to go on with, a program
that it has already.
"""

import argparse
import bisect
import contextlib
import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import jax

from benchmarks import arguments
from configs import quickstart
from srl_jax.config import mesh_spec
from srl_jax.learner import metrics, rl
from srl_jax.policy.sharding import make_mesh

# What a thread does for a program: small ones run in the thread that starts them, parts of large
# ones in XLA's pool.
PROGRAM = "ThunkExecutor::Execute"
CALL = "PjitFunction"  # what the host does to start one


@contextlib.contextmanager
def tracing(folder: pathlib.Path, first: int, last: int) -> Iterator[None]:
  """What runs in here is traced from the end of step `first` to the end of step `last`."""
  write = metrics.Log.step

  def step(log, number, row):
    write(log, number, row)
    if number == first:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # it would slow the host down, which is what is measured
      jax.profiler.start_trace(str(folder), profiler_options=options)
    elif number == last:
      jax.profiler.stop_trace()

  with mock.patch.object(metrics.Log, "step", step):
    yield


class Span(NamedTuple):
  """An event of the trace, in seconds."""

  start: float
  end: float
  name: str


def spans(folder: pathlib.Path) -> tuple[list[Span], list[Span]]:
  """(runs of programs and of their parts, calls of the host) of the trace, by start."""
  file = next(folder.rglob("*.xplane.pb"))
  planes = jax.profiler.ProfileData.from_file(str(file)).planes
  found = sorted(
    Span(event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9, event.name)
    for plane in planes
    for line in plane.lines
    for event in line.events
    if event.name.startswith((PROGRAM, CALL))
  )
  of_kind = lambda kind: [span for span in found if span.name.startswith(kind)]
  return of_kind(PROGRAM), of_kind(CALL)


def pauses(runs: list[Span]) -> list[tuple[float, float]]:
  """(start, end) of the times at which nothing runs."""
  found, end = [], runs[0].end
  for run in runs:
    if run.start > end:
      found.append((end, run.start))
    end = max(end, run.end)
  return found


def of_host(idle: list[tuple[float, float]], calls: list[Span]) -> list[tuple[str, str, float]]:
  """(program before, program after, seconds) of the pauses that the host made: in which it had not
  handed over the next program yet.
  """
  starts, found = [call.start for call in calls], []
  newest = lambda time: calls[bisect.bisect(starts, time) - 1]
  for start, end in idle:
    if newest(end).end > start:
      found.append((newest(start).name, newest(end).name, end - start))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  step = arguments.at_least(1)
  parser.add_argument("--first", type=step, default=200, help="the trace begins after this step")
  parser.add_argument("--last", type=step, default=260, help="and ends with this one")
  given = parser.parse_args()
  if given.last <= given.first:
    parser.error(f"--last={given.last} must be more than --first={given.first}")
  config = quickstart.get_config(f"steps={given.last}")
  config.eval.benchmark, config.train.eval_every, config.train.save_every = "", 0, 10**6
  with tempfile.TemporaryDirectory() as name:
    workdir, folder = pathlib.Path(name) / "run", pathlib.Path(name) / "trace"
    mesh = make_mesh(mesh_spec(config))
    with jax.set_mesh(mesh), tracing(folder, given.first, given.last):
      rl.train(config, workdir)
    runs, calls = spans(folder)
  idle = pauses(runs)
  found = of_host(idle, calls)
  steps, wall = given.last - given.first, runs[-1].end - runs[0].start
  share = lambda seconds: f"{100 * sum(seconds) / wall:.1f} %"
  seconds = [gap for *_, gap in found]
  print("\n| steps traced | ms a step | idle | host gap | longest gap |\n|---|---|---|---|---|")
  print(
    f"| {given.first + 1}-{given.last} | {1e3 * wall / steps:.0f} | "
    f"{share(end - start for start, end in idle)} | {share(seconds)} | "
    f"{1e3 * max(seconds):.1f} ms |"
  )
  between = Counter()
  for before, after, gap in found:
    between[before, after] += gap
  name = lambda call: call.removeprefix(f"{CALL}(").rstrip(")").lstrip("_")
  print("\n| the host's gap after | and before | ms a step |\n|---|---|---|")
  for (before, after), gap in between.most_common(6):
    print(f"| {name(before)} | {name(after)} | {1e3 * gap / steps:.1f} |")


if __name__ == "__main__":
  main()
