"""Writes the page of one or several runs: curves, rollouts with matched blocks, an audit.

  python -m srl_jax.report --workdirs=runs/quickstart
  python -m srl_jax.report --workdirs=runs/a,runs/b --output=report.html --watch

The page is one HTML file that loads nothing else; open it in a browser. A run writes its own page,
WORKDIR/report.html, while it trains (log.report). docs/report.md describes the page.
"""

import pathlib
import time

from srl_jax import command_line
from srl_jax.errors import UserError
from srl_jax.reporting import contents, page, reading

flags = command_line.own_flags()
_WORKDIRS = flags.DEFINE_list("workdirs", None, "Workdirs of the runs.", required=True)
_OUTPUT = flags.DEFINE_string(
  "output", None, "File to write (default: WORKDIR/report.html of one run, else report.html)."
)
_WATCH = flags.DEFINE_bool("watch", False, "Write again when the files change, until all runs end.")
_QUIET = flags.DEFINE_bool("quiet", False, "Print errors only.")

SECONDS = 30.0  # between two looks at the files


def main(argv: list[str]) -> None:
  del argv
  workdirs = _WORKDIRS.value
  output = pathlib.Path(_OUTPUT.value or _default_output(workdirs))
  if output.is_dir():
    raise UserError(f"--output={output} is a folder: name a file, such as {output}/report.html")
  seen = stamps(workdirs)  # before the files are read: what changes meanwhile is read next time
  finished = write(workdirs, output)
  while _WATCH.value and not finished:
    time.sleep(SECONDS)
    now = stamps(workdirs)
    if now != seen:
      seen, finished = now, write(workdirs, output)


def _default_output(workdirs: list[str]) -> pathlib.Path:
  alone = len(workdirs) == 1
  return pathlib.Path(workdirs[0]) / "report.html" if alone else pathlib.Path("report.html")


def write(workdirs: list[str], output: pathlib.Path) -> bool:
  """Writes the page, says so and what was not readable; returns whether all runs are finished."""
  start = time.monotonic()
  data = contents.contents(reading.read_runs(workdirs))
  size = page.write(output, data)
  seconds = time.monotonic() - start
  if not _QUIET.value:
    print(f"wrote {output}: {size / 1e6:.1f} MB in {seconds:.1f} s", flush=True)
    for run in data["runs"]:
      for fault in run["faults"]:
        print(f"  {run['name']}: {fault}", flush=True)
  return all(run["finished"] for run in data["runs"])


def stamps(workdirs: list[str]) -> list[tuple[int, int]]:
  """Returns sizes and times of the files of runs that a step changes."""
  found = []
  for workdir in workdirs:
    for name in ("metrics.jsonl", "rollouts", "summary.json", "config.json"):
      path = pathlib.Path(workdir) / name
      about = path.stat() if path.exists() else None
      found.append((about.st_size, about.st_mtime_ns) if about else (0, 0))
  return found


if __name__ == "__main__":
  command_line.run(main, flags.values)
