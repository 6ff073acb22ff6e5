"""Measures our update, sampler and reward beside those of other projects, on this machine's CPU.

  python -m benchmarks.peers                     everything, about 35 minutes; writes peers.md
  python -m benchmarks.peers --cases=update,sample --shapes=tiny --output=peers_tiny.md
  python -m benchmarks.peers --shapes=nano       ours and difflib, seconds: a test

The first run installs TRL, tunix and vLLM, each in its own environment.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.peers import environments, table
from benchmarks.peers.worker import Peer, PeerError

WARM_UP = 2  # rounds that are not counted: programs are compiled in the first
PAUSE = 0.5  # seconds between two rounds, so that the threads of the last peer have gone to sleep

# Each peer: its environment, its module, and its entries of the order besides the case's.
UPDATES = {
  "ours, prompt shared": ("ours", "of_srl_jax", {"share": True}),
  "ours, sharing off": ("ours", "of_srl_jax", {"share": False}),
  "TRL": ("trl", "of_trl", {}),
}
SAMPLERS = {
  "ours": ("ours", "of_srl_jax", {}),
  "transformers": ("trl", "of_trl", {}),
  "tunix": ("tunix", "of_tunix", {}),
  "vLLM": ("vllm", "of_vllm", {}),
}
REWARDS = {
  "ours": ("ours", "of_srl_jax", {"workers": 0}),
  "standard library": ("ours", "of_srl_jax", {"case": "difflib"}),
}
# 135M without checkpointing does not fit beside the other peers in 24 GB, nor does tunix with its 8
# responses at once: of 2, 4 and 8 micro-batches it is fastest in 4.
TUNIX = {
  "tiny": {"tunix": ("tunix", "of_tunix", {"micro_batches": 1})},
  "135M": {"tunix (in 4 micro-batches)": ("tunix", "of_tunix", {"micro_batches": 4})},
}
GROUP = {"prompt": 512, "response": 128, "samples": 8}


def plan(shapes: list[str]) -> list[tuple[dict, dict, int]]:
  """The measurements: (order, peers, rounds that count)."""
  if shapes == ["nano"]:
    small = {"shape": "nano", "prompt": 24, "response": 8, "samples": 4}
    ours = lambda who: {name: peer for name, peer in who.items() if peer[0] == "ours"}
    return [
      ({"case": "update"} | small | {"remat": False}, ours(UPDATES), 2),
      ({"case": "sample"} | small | {"prompts": 2}, ours(SAMPLERS), 2),
      ({"case": "reward", "pairs": 8, "characters": 200}, REWARDS, 2),
    ]
  found = []
  for shape in shapes:
    order, rounds = GROUP | {"shape": shape}, 5 if shape == "tiny" else 3
    update = {"case": "update"} | order | {"remat": shape != "tiny"}
    found.append((update, UPDATES | TUNIX[shape], rounds))
    found.append(({"case": "sample"} | order | {"prompts": 4}, SAMPLERS, rounds))
  whole = {"ours, 2 processes": ("ours", "of_srl_jax", {"workers": 2})}
  found.append(({"case": "reward", "pairs": 64, "characters": 2000}, REWARDS, 5))
  found.append(({"case": "reward", "pairs": 4096, "characters": 2000}, whole, 3))
  return found


def command_of(environment: str, module: str, order: dict) -> list[str]:
  """The command of a peer's process."""
  python = environments.python_of(environment)
  return [python, "-m", f"benchmarks.peers.{module}", json.dumps(order)]


def measure(order: dict, who: dict, rounds: int, folder: pathlib.Path) -> dict:
  """{name: the answers of the rounds that count, or why it failed}; the logs are in the folder."""
  with contextlib.ExitStack() as stack:
    peers, found = {}, {name: [] for name in who}
    # In turns: a slower minute of the machine is not one peer's.
    for turn in range(WARM_UP + rounds):
      for name in [name for name in who if isinstance(found[name], list)]:
        time.sleep(PAUSE)
        if name not in peers:  # started in the first turn, which waits until it is ready
          environment, module, extra = who[name]
          command = command_of(environment, module, order | extra)
          log = folder / f"{order['case']}-{len(list(folder.iterdir()))}-{module}.log"
          peers[name] = Peer(command, environments.variables(environment), log)
          stack.callback(peers[name].close)
        try:
          answer = peers[name].ask(turn)
        except PeerError as error:
          found[name] = str(error)
          print(f"  {name}: {error}; its log is {peers[name].log}", file=sys.stderr, flush=True)
          continue
        if turn >= WARM_UP:
          found[name].append(answer)
          print(f"  {turn:2} {name}: {answer['seconds']:.3f} s", flush=True)
  return found


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  words = lambda text: text.split(",")
  parser.add_argument("--shapes", type=words, default=["tiny", "135M"])
  parser.add_argument("--cases", type=words, default=["update", "sample", "reward"])
  whole = len(sys.argv) == 1
  page = environments.ROOT / "benchmarks" / "peers.md" if whole else None
  parser.add_argument("--output", type=pathlib.Path, default=page, help="file of the page")
  given = parser.parse_args()
  todo = [part for part in plan(given.shapes) if part[0]["case"] in given.cases]
  if given.output:
    given.output.touch()  # a wrong path fails before anything is measured
  logs = pathlib.Path(tempfile.mkdtemp(prefix="peers-"))
  print(f"logs in {logs}", flush=True)
  parts, begun, used = [], time.time(), {}
  for order, who, rounds in todo:
    if "shape" in order:
      # All peers load the same random weights, which our side writes.
      order["model"] = str(logs / f"model-{order['shape']}")
      if not pathlib.Path(order["model"]).exists():
        writer = command_of("ours", "of_srl_jax", order | {"case": "model"})
        subprocess.run(writer, stdin=subprocess.DEVNULL, check=True)
    print(order, flush=True)
    parts.append((order, measure(order, who, rounds, logs)))
    used |= {name: environments.PACKAGES[name] for name, *_ in who.values()}
  command = " ".join(["python -m benchmarks.peers", *sys.argv[1:]])
  minutes = (time.time() - begun) / 60
  text = table.page(parts, versions=used, command=command, minutes=minutes)
  if given.output:
    given.output.write_text(text)
  print(text)
  return int(any(isinstance(answers, str) for _, found in parts for answers in found.values()))


if __name__ == "__main__":
  sys.exit(main())
