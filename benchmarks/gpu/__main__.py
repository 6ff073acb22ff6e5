"""Measures one NVIDIA card: the update, the sampler, and the same update in torch.

  python -m benchmarks.gpu                      all sections, about 8 minutes on one H100
  python -m benchmarks.gpu --sections ceiling update_7b
  python -m benchmarks.gpu --tiny               a minute or two, on any machine
  python -m benchmarks.gpu --real=FOLDER        a real run of 30 steps instead, see real.py

Needs jax, flax, optax, ml_collections, torch and transformers, and no network. Every section runs
in a separate process, so that its peak of memory includes no other section; the results are written
to benchmarks/gpu.json and, as a table, to benchmarks/gpu_run.md. Weights are random: speed does not
depend on them. That the card's attention kernel is right is a test:
JAX_PLATFORMS=cuda pytest tests/policy/kernels_test.py.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from benchmarks.gpu import real
from benchmarks.gpu.cases import sections
from benchmarks.gpu.table import table

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 150  # seconds of a section on a card


def run_section(name: str, tiny: bool, seconds: float | None, folder: pathlib.Path) -> dict:
  """Runs a section in a separate process and returns its result; {"error": last lines} if it fails.

  Args:
    name: of cases.sections.
    tiny: whether to run the tiny shapes.
    seconds: time limit, or None.
    folder: for the result, the log and the compiled programs, which all sections share.
  """
  # More than JAX's default share of the memory, because nothing else runs on the card.
  environment = dict(os.environ, XLA_CLIENT_MEM_FRACTION="0.95")
  environment.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # its old name: JAX refuses both
  environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
  environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  result, log = folder / f"{len(list(folder.iterdir()))}.json", folder / "log"
  command = [sys.executable, "-m", "benchmarks.gpu", f"--one={name}", f"--output={result}"]
  # Into a file: torch's compiling processes would keep a pipe open after the section's end.
  with log.open("w") as out:
    output = dict(stdout=out, stderr=subprocess.STDOUT)
    try:
      done = subprocess.run(
        [*command, *["--tiny"] * tiny], cwd=ROOT, env=environment, timeout=seconds, **output
      )
    except subprocess.TimeoutExpired:
      return dict(error=f"not done in {seconds:.0f} s")
  if done.returncode:
    return dict(error=log.read_text().strip()[-3000:] or f"exit code {done.returncode}")
  return json.loads(result.read_text())


def software() -> dict:
  """The driver and the versions."""
  driver, versions = None, {"Python": sys.version.split()[0]}
  if shutil.which("nvidia-smi"):
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.partition("\n")[0]
  for name in ("jax", "flax", "torch", "transformers"):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  return dict(driver=driver, versions=versions)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  words = list(dict.fromkeys(name.split()[0] for name in sections(tiny=False)))
  parser.add_argument("--sections", nargs="+", choices=words, default=words, metavar="WORD")
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument(
    "--output",
    type=pathlib.Path,
    help="folder of gpu.json and gpu_run.md; default: benchmarks, none with --tiny or --sections",
  )
  parser.add_argument("--real", type=pathlib.Path, metavar="FOLDER", help="with model, data.jsonl")
  parser.add_argument("--one", help=argparse.SUPPRESS)
  given, more = parser.parse_known_args()
  if given.real:
    print(real.measure(given.real, given.tiny, more))
    return
  if more:
    parser.error(f"unknown arguments: {' '.join(more)}")
  todo, folder = sections(given.tiny), given.output
  if given.one:  # in the process that run_section started
    function, values = todo[given.one]
    module, name = function.split(".")
    run = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)
    folder.write_text(json.dumps(run(*values)))
    return
  if folder is None and not given.tiny and given.sections == words:
    folder = ROOT / "benchmarks"
  if folder:
    folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as name:
    scratch, limit = pathlib.Path(name), None if given.tiny else LIMIT
    # A separate process queries JAX, which would reserve the card's memory for as long as it lives.
    device = run_section("device", given.tiny, limit, scratch)
    if "error" in device:
      sys.exit(f"JAX finds no device: {device['error']}")
    if device["platform"] == "cpu" and not given.tiny:
      sys.exit("JAX finds no card here, only a CPU; --tiny runs on any machine")
    results = dict(machine=device | software(), date=str(datetime.date.today()), tiny=given.tiny)
    found = results["sections"] = {}
    for name in [name for name in todo if name.split()[0] in given.sections and name != "device"]:
      begun = time.monotonic()
      found[name] = run_section(name, given.tiny, limit, scratch)
      print(f"{name}: {time.monotonic() - begun:.0f} s {found[name].get('error', '')}", flush=True)
      if folder:  # after every section, so that an interrupted run keeps its results
        (folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (folder / "gpu_run.md").write_text(table(results), encoding="utf-8")
  print("\n" + table(results))


if __name__ == "__main__":
  main()
