"""The standard library's reward: difflib, as the paper names it."""

import difflib
import platform
import time

from benchmarks.peers import cases
from benchmarks.peers.worker import serve


def prepare_reward(order):
  def do(turn):
    pairs = cases.text_pairs(order["pairs"], order["characters"], turn)
    begun = time.perf_counter()
    values = [difflib.SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in pairs]
    return {"seconds": time.perf_counter() - begun, "mean": sum(values) / len(values)}

  return do, {"python": platform.python_version()}


if __name__ == "__main__":
  serve({"reward": prepare_reward})
