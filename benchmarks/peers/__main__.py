"""Measures our update beside TRL's and tunix's, our sampler beside vLLM's, on this machine's CPU.

  python -m benchmarks.peers --output=benchmarks/peers_tiny.md    minutes
  python -m benchmarks.peers --nano                               ours alone, seconds: a test

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
from benchmarks.peers.worker import Peer

WARM_UP = 2  # rounds that are not counted: programs are compiled in the first
PAUSE = 0.5  # seconds between two rounds, so that the threads of the last peer have gone to sleep

# {case: {peer: (its environment, its module, its entries of the order besides the case's)}}
PEERS = {
  "update": {
    "ours, prompt shared": ("ours", "of_srl_jax", {"share": True}),
    "ours, sharing off": ("ours", "of_srl_jax", {"share": False}),
    "TRL": ("trl", "of_trl", {}),
    "tunix": ("tunix", "of_tunix", {}),
  },
  "sample": {
    "ours": ("ours", "of_srl_jax", {}),
    "vLLM": ("vllm", "of_vllm", {}),
  },
}
TINY = {"shape": "tiny", "prompt": 512, "response": 128, "samples": 8}
NANO = {"shape": "nano", "prompt": 24, "response": 8, "samples": 4}
PROMPTS = {"update": 1, "sample": 4}  # of a round


def command_of(environment: str, module: str, order: dict) -> list[str]:
  """The command of a peer's process."""
  python = environments.python_of(environment)
  return [python, "-m", f"benchmarks.peers.{module}", json.dumps(order)]


def measure(order: dict, who: dict, rounds: int, folder: pathlib.Path) -> dict:
  """{name: the answers of the rounds that count}; the logs are in the folder."""
  with contextlib.ExitStack() as stack:
    peers, found = {}, {name: [] for name in who}
    for name, (environment, module, extra) in who.items():
      command, log = command_of(environment, module, order | extra), folder / f"{name}.log"
      peers[name] = Peer(command, environments.variables(environment), log)
      stack.callback(peers[name].close)
    # In turns: a slower minute of the machine is not one peer's.
    for turn in range(WARM_UP + rounds):
      for name, peer in peers.items():
        time.sleep(PAUSE)
        answer = peer.ask(turn)
        if turn >= WARM_UP:
          found[name].append(answer)
          print(f"  {turn:2} {name}: {answer['seconds']:.3f} s", flush=True)
  return found


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--nano", action="store_true", help="ours alone, the shape of the tests")
  parser.add_argument("--output", type=pathlib.Path, help="file of the page")
  given = parser.parse_args()
  if given.output:
    given.output.touch()  # a wrong path fails before anything is measured
  logs = pathlib.Path(tempfile.mkdtemp(prefix="peers-"))
  print(f"logs in {logs}", flush=True)
  # All peers load the same random weights, which our side writes.
  order, parts = (NANO if given.nano else TINY) | {"model": str(logs / "model")}, []
  writer = command_of("ours", "of_srl_jax", order | {"case": "model"})
  subprocess.run(writer, stdin=subprocess.DEVNULL, check=True)
  for case, who in PEERS.items():
    if given.nano:
      who = {name: peer for name, peer in who.items() if peer[0] == "ours"}
    print(case, flush=True)
    order |= {"case": case, "prompts": PROMPTS[case]}
    folder = logs / case
    folder.mkdir()
    parts.append((dict(order), measure(order, who, 5, folder)))
  text = table.page(parts, command=" ".join(["python -m benchmarks.peers", *sys.argv[1:]]))
  if given.output:
    given.output.write_text(text)
  print(text)


if __name__ == "__main__":
  main()
