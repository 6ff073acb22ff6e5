"""Where the seconds of a push go: written files, the server's pause, the check of its log-probs.

  launch/vllm_server.sh MODEL --dtype=float32 --max-model-len=1024 &
  python -m benchmarks.push --model=MODEL --server=http://127.0.0.1:8101 --log=LOG

LOG is the file that the server's first line names: its own lines split the pause. Beside each push
the same bytes are written by a plain loop of one process, and the server loads the same files with
vLLM's own loader (its route for `reload_weights`).
"""

import argparse
import pathlib
import re
import shutil
import statistics
import sys
import time

import jax
from safetensors.numpy import load_file

from benchmarks import machine
from srl_jax import command_line
from srl_jax.errors import EngineError
from srl_jax.policy.hf_tensors import hf_batches
from srl_jax.policy.sharding import make_mesh
from srl_jax.policy.weights import load_hf
from srl_jax.rollout.vllm_fleet import read_limits
from srl_jax.rollout.vllm_server import Server
from srl_jax.rollout.vllm_weights import Probe, push
from srl_jax.rollout.weights_folder import BATCH_BYTES, WeightsFolder

ROWS = {
  "plain": "plain write of the same bytes, one process",
  "cast": "cast alone: tensors in the servers' layout and type",
  "write": "write: cast, copy, files",
  "pause": "pause of the server",
  "check": "  of it: names and shapes",
  "load": "  of it: load",
  "rest": "  of it: the routes' calls",
  "vllm": "vLLM's own load of these files",
  "probe": "probe: log-probs compared",
}


class Timed(Server):
  """A server that keeps when each of its calls began and ended."""

  def call(self, method, path, *args, **kwargs):
    begun = time.perf_counter()
    try:
      return super().call(method, path, *args, **kwargs)
    finally:
      self.times[path.partition("?")[0]] = (begun, time.perf_counter())


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", required=True, help="folder")
  parser.add_argument("--server", required=True, help="base URL")
  parser.add_argument("--log", required=True, help="file of the server's output")
  parser.add_argument("--root", default="/dev/shm", help="the server's SRL_WEIGHTS_ROOT")
  parser.add_argument("--turns", type=int, default=5)
  given = parser.parse_args()
  server = Timed(given.server)
  server.times, log = {}, pathlib.Path(given.log)
  limits = read_limits(server)
  folder = WeightsFolder(given.root)
  found = {name: [] for name in ROWS}
  try:
    with jax.set_mesh(make_mesh("data=1,fsdp=1,tensor=1")):
      _, model = load_hf(given.model, compute_dtype=limits.dtype)
      before = given.root / pathlib.Path(folder.write(model, 0, limits.dtype))
      for turn in range(1, 2 + given.turns):  # the first warms up
        seconds, size, before = measure(server, folder, model, turn, limits, before, log)
        for name, value in seconds.items():
          found[name] += [value] if turn > 1 else []
  finally:
    folder.close()
  print(table(found, size, f"{pathlib.Path(given.model).name}, {limits.dtype}"))


def measure(server, folder, model, turn, limits, before, log):
  """({name of ROWS: seconds}, bytes, folder) of a push of version `turn` after that in `before`."""
  seconds = {}
  begun = time.perf_counter()
  for stacks in hf_batches(model.config, model, limits.dtype, BATCH_BYTES):
    jax.block_until_ready([stack.array for stack in stacks])
  seconds["cast"] = time.perf_counter() - begun
  # Both writes find the weights before in the folder and the memory of a removed version free.
  seconds["plain"], size = plain_write(before, folder.path / "plain")
  begun = time.perf_counter()
  name = folder.write(model, turn, limits.dtype)
  seconds["write"] = time.perf_counter() - begun
  folder.keep_only(name)
  probe = Probe(model, turn, limits.max_model_len)
  served = push(server, name, turn)
  seconds["pause"] = server.times["/resume"][1] - server.times["/pause"][0]
  seconds["check"], seconds["load"] = last_update(log, name)
  seconds["rest"] = seconds["pause"] - seconds["check"] - seconds["load"]
  begun = time.perf_counter()
  probe.check(server, served, limits.dtype)
  seconds["probe"] = time.perf_counter() - begun
  body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder.root / name)}}
  server.call("POST", "/collective_rpc", body, timeout=600, is_json=False)
  begun, ended = server.times["/collective_rpc"]
  seconds["vllm"] = ended - begun
  return seconds, size, folder.root / name


def plain_write(source: pathlib.Path, target: pathlib.Path) -> tuple[float, int]:
  """(seconds of writing all tensors of a folder from memory, as many files; their bytes)."""
  seconds, size = 0.0, 0
  target.mkdir()
  for file in source.glob("*.safetensors"):
    # Copies: what is only mapped would be read while the clock runs.
    arrays = [array.copy() for array in load_file(file).values()]
    begun = time.perf_counter()
    with (target / file.name).open("wb", buffering=0) as out:
      for array in arrays:
        out.write(array.reshape(-1).view("uint8"))
    seconds += time.perf_counter() - begun
    size += sum(array.nbytes for array in arrays)
  shutil.rmtree(target)
  return seconds, size


def last_update(log: pathlib.Path, name: str) -> tuple[float, float]:
  """(seconds of the checks, of the load) of a folder, from the plugin's line in the log."""
  pattern = rf"{re.escape(name)}: checked \d+ tensors in ([\d.]+) s, loaded them in ([\d.]+) s"
  deadline = time.monotonic() + 5
  while not (lines := re.findall(pattern, log.read_text(errors="replace"))):
    if time.monotonic() > deadline:
      sys.exit(f"error: {log} has no line of the update of {name}; give the server's own --log")
    time.sleep(0.1)
  check, load = lines[-1]
  return float(check), float(load)


def table(found: dict[str, list[float]], size: int, title: str) -> str:
  """The medians of all turns, and the two ratios."""
  median = {name: statistics.median(values) for name, values in found.items()}
  lines = [f"{title}, {size / 1e6:.0f} MB; {machine.cores_and_memory()}", ""]
  lines += ["| part | seconds, median (each) | GB/s |", "|---|---|---|"]
  for name, label in ROWS.items():
    each = ", ".join(f"{value:.3f}" for value in found[name])
    rate = f"{size / 1e9 / median[name]:.2f}" if name not in ("check", "rest", "probe") else ""
    lines.append(f"| {label.strip()} | {median[name]:.3f} ({each}) | {rate} |")
  pairs = lambda a, b: statistics.median(x / y for x, y in zip(found[a], found[b]))
  return "\n".join(
    [
      *lines,
      "",
      f"rate of the write / plain write: {pairs('plain', 'write'):.2f} (median of the turns)",
      f"pause / vLLM's own load: {pairs('pause', 'vllm'):.2f} (median of the turns)",
    ]
  )


if __name__ == "__main__":
  with command_line.in_one_line():
    try:
      main()
    except EngineError as error:
      sys.exit(f"error: {error}")
