"""Measures our update, sampler and reward beside those of other projects, on this machine's CPU.

  python -m benchmarks.peers                     everything, about 35 minutes; writes peers.md
  python -m benchmarks.peers --cases=update --shapes=tiny --output=peers_tiny.md
  python -m benchmarks.peers --tiny              ours and the standard library, seconds: a test

The first run installs TRL, tunix and vLLM, each in its own environment.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile
import time

from benchmarks.peers import environments, table
from benchmarks.peers.worker import Peer, PeerError

WARM_UP = 2  # rounds that are not counted: programs are compiled in the first
PAUSE = 0.5  # seconds between two rounds, so that the threads of the last peer have gone to sleep

# Each peer: its environment, its module, and its entries of the order besides the case.
UPDATES = {
  "ours, prompt shared": ("ours", "of_srl_jax", {"share": True}),
  "ours, sharing off": ("ours", "of_srl_jax", {"share": False}),
  "TRL": ("trl", "of_trl", {}),
  "tunix": ("tunix", "of_tunix", {"micro_batches": 1}),
}
SAMPLERS = {
  "ours": ("ours", "of_srl_jax", {}),
  "transformers": ("trl", "of_trl", {}),
  "tunix": ("tunix", "of_tunix", {}),
  "vLLM": ("vllm", "of_vllm", {}),
}
REWARDS = {
  "ours": ("ours", "of_srl_jax", {"workers": 0}),
  "standard library": ("ours", "of_stdlib", {}),
}
GROUP = {"prompt": 512, "response": 128, "samples": 8}


def plan(shapes: list[str], tiny: bool) -> list[tuple[str, dict, dict, int]]:
  """The measurements: (case, order, peers, rounds that count)."""
  if tiny:
    small = {"shape": "nano", "prompt": 24, "response": 8, "samples": 4}
    ours = lambda who: {name: peer for name, peer in who.items() if peer[0] == "ours"}
    return [
      ("update", small | {"remat": False}, ours(UPDATES), 2),
      ("sample", small | {"prompts": 2}, ours(SAMPLERS), 2),
      ("reward", {"pairs": 8, "characters": 200}, REWARDS, 2),
    ]
  found = []
  for shape in shapes:
    order, rounds = GROUP | {"shape": shape}, 5 if shape == "tiny" else 3
    # 135M without checkpointing does not fit beside the other peers in 24 GB, nor does tunix with
    # its 8 responses at once: of 2, 4 and 8 micro-batches it is fastest in 4.
    updates = dict(UPDATES)
    if shape != "tiny":
      updates["tunix"] = ("tunix", "of_tunix", {"micro_batches": 4})
    found.append(("update", order | {"remat": shape != "tiny"}, updates, rounds))
    found.append(("sample", order | {"prompts": 4}, SAMPLERS, rounds))
  whole = {"ours, 2 processes": ("ours", "of_srl_jax", {"workers": 2})}
  found.append(("reward", {"pairs": 64, "characters": 2000}, REWARDS, 5))
  found.append(("reward", {"pairs": 4096, "characters": 2000}, whole, 3))
  return found


def measure(
  case: str, order: dict, who: dict, rounds: int, folder: pathlib.Path
) -> tuple[dict, dict]:
  """({name: its answers of the rounds that count, or the PeerError}, {name: versions}).

  Args:
    case, order, who, rounds: of plan.
    folder: for the peers' logs.
  """
  with contextlib.ExitStack() as stack:
    peers, found, versions = {}, {name: [] for name in who}, {}

    def ask(name, order):
      try:
        return peers[name].ask(order)
      except PeerError as error:
        found[name] = error
        print(f"  {name}: {error}; its log is {peers[name].log}", file=sys.stderr, flush=True)
        return None

    for name, (environment, module, extra) in who.items():
      command = [environments.python_of(environment), "-m", f"benchmarks.peers.{module}"]
      log = folder / f"{case}-{len(list(folder.iterdir()))}-{module}.log"
      peers[name] = Peer(command, environments.variables(environment), log)
      stack.callback(peers[name].close)
      answer = ask(name, {"case": case} | order | extra)
      versions[name] = answer["versions"] if answer else {}
    # In turns: a slower minute of the machine is not one peer's.
    for turn in range(WARM_UP + rounds):
      for name in who:
        if isinstance(found[name], PeerError):
          continue
        time.sleep(PAUSE)
        answer = ask(name, {"turn": turn})
        if answer and turn >= WARM_UP:
          found[name].append(answer)
          print(f"  {turn:2} {name}: {answer['seconds']:.3f} s", flush=True)
  return found, versions


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  shapes, cases = ["tiny", "135M"], ["update", "sample", "reward"]
  for name, known in (("--shapes", shapes), ("--cases", cases)):
    parser.add_argument(name, nargs="+", choices=known, default=known, metavar="|".join(known))
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument(
    "--output",
    type=pathlib.Path,
    help="file of the page; default: benchmarks/peers.md, and none for a part of it",
  )
  given = parser.parse_args()
  if given.output is None and (given.shapes, given.cases, given.tiny) == (shapes, cases, False):
    given.output = environments.ROOT / "benchmarks" / "peers.md"
  if given.output:
    given.output.touch()  # a wrong path fails before anything is measured
  logs = pathlib.Path(tempfile.mkdtemp(prefix="peers-"))
  print(f"logs in {logs}", flush=True)
  writer = Peer(
    [environments.python_of("ours"), "-m", "benchmarks.peers.of_srl_jax"], {}, logs / "models.log"
  )
  # All peers load the same random weights, which our side writes.
  parts, begun = [], time.time()
  for case, order, who, rounds in plan(given.shapes, given.tiny):
    if case not in given.cases:
      continue
    if "shape" in order:
      order["model"] = str(logs / f"model-{order['shape']}")
      if not pathlib.Path(order["model"]).exists():
        writer.ask({"case": "model"} | order)
    print(f"{case} {order}", flush=True)
    parts.append((case, order, *measure(case, order, who, rounds, logs)))
  writer.close()
  command = " ".join(["python -m benchmarks.peers", *sys.argv[1:]])
  text = table.page(parts, command=command, minutes=(time.time() - begun) / 60)
  if given.output:
    given.output.write_text(text)
  print(text)
  failed = [e for *_, found, _ in parts for e in found.values() if isinstance(e, PeerError)]
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
