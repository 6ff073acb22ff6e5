"""Measures one NVIDIA card: the update, the sampler, and the same update in torch.

  python -m benchmarks.gpu                      all sections, about 8 minutes on one H100
  python -m benchmarks.gpu --sections ceiling update_7b
  python -m benchmarks.gpu --tiny               a minute or two, on any machine

Needs jax, flax, optax, ml_collections, torch and transformers, and no network. Every section runs
in a separate process, so that its peak of memory includes no other section; the results are written
to benchmarks/gpu.json and, as a table, to benchmarks/gpu.md. Weights are random: speed does not
depend on them. That the
card's attention kernel is right is a test: JAX_PLATFORMS=cuda pytest tests/policy/kernels_test.py.
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

from benchmarks.gpu.cases import sections
from benchmarks.gpu.table import table

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 150  # seconds of a section on a card


def run_section(name: str, tiny: bool, seconds: float | None, cache: str) -> dict:
  """Runs a section in a separate process and returns its result; {"error": last lines} if it fails.

  Args:
    name: of cases.sections.
    tiny: whether to run the tiny shapes.
    seconds: time limit, or None.
    cache: folder of compiled programs, shared by all sections.
  """
  # More than JAX's default share of the memory, because nothing else runs on the card.
  environment = dict(os.environ, XLA_CLIENT_MEM_FRACTION="0.95")
  environment.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # its old name: JAX refuses both
  paths = [str(ROOT), os.environ.get("PYTHONPATH")]
  environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
  environment.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
  environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  command = [sys.executable, "-m", "benchmarks.gpu", f"--one={name}", *["--tiny"] * tiny]
  # Into files: torch's compiling processes would keep a pipe open after the section's end.
  with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
    try:
      done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=out, stderr=err, timeout=seconds
      )
    except subprocess.TimeoutExpired:
      return dict(error=f"not done in {seconds:.0f} s")
    texts = []
    for file in (out, err):
      file.seek(0)
      texts.append(file.read().strip())
  if done.returncode or not texts[0]:
    return dict(error=(texts[1] or texts[0])[-3000:] or f"exit code {done.returncode}")
  return json.loads(texts[0].splitlines()[-1])


def machine() -> dict:
  """The card, the driver and the versions.

  A separate process queries JAX, which would reserve the card's memory for as long as it lives.
  """
  script = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind)"
  ask = lambda *command: subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
  # The last line, because JAX may print warnings before it.
  platform, _, device = ask(sys.executable, "-c", script).strip().rpartition("\n")[2].partition(" ")
  if not platform:
    sys.exit("JAX finds no device: see its message above")
  driver = None
  if shutil.which("nvidia-smi"):
    driver = ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    driver = driver.strip().partition("\n")[0]
  versions = {"Python": sys.version.split()[0]}
  for name in ("jax", "flax", "torch", "transformers"):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  return dict(device=device, platform=platform, driver=driver, versions=versions)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sections", nargs="+", help="first words of sections; default: all")
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument(
    "--output",
    type=pathlib.Path,
    help="folder for gpu.json and gpu.md; default: benchmarks, and none with --tiny or --sections",
  )
  parser.add_argument("--one", help=argparse.SUPPRESS)
  given = parser.parse_args()
  todo = sections(given.tiny)
  if given.one:  # in the process that run_section started
    function, values = todo[given.one]
    module, name = function.split(".")
    run = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)
    print(json.dumps(run(*values)))
    return
  words = dict.fromkeys(name.split()[0] for name in todo)
  wanted = given.sections or words
  unknown = [word for word in wanted if word not in words]
  if unknown:
    parser.error(f"--sections: {' '.join(unknown)} unknown; there are {' '.join(words)}")
  folder = given.output
  if folder is None and not given.tiny and not given.sections:
    folder = ROOT / "benchmarks"
  results = dict(machine=machine(), date=str(datetime.date.today()), tiny=given.tiny, sections={})
  if results["machine"]["platform"] == "cpu" and not given.tiny:
    sys.exit("JAX finds no card here, only a CPU; --tiny runs on any machine")
  if folder:
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      parser.error(f"--output: {error}")
  with tempfile.TemporaryDirectory() as cache:
    for name in [name for name in todo if name.split()[0] in wanted]:
      begun = time.monotonic()
      found = run_section(name, given.tiny, None if given.tiny else LIMIT, cache)
      results["sections"][name] = found
      print(f"{name}: {time.monotonic() - begun:.0f} s {found.get('error', '')}", flush=True)
      if folder:  # after every section, so that an interrupted run keeps its results
        (folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (folder / "gpu.md").write_text(table(results), encoding="utf-8")
  print("\n" + table(results))


if __name__ == "__main__":
  main()
