"""benchmarks.peers: the whole run without peers, and the page that it writes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.peers import cases, table
from benchmarks.peers.worker import Peer

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORDER = {
  "case": "update",
  "shape": "nano",
  "prompt": 24,
  "response": 8,
  "samples": 4,
  "prompts": 1,
}


def answer(seconds, **more):
  return {"seconds": seconds} | more


@pytest.mark.slow
def test_peers_measures_ours_and_writes_the_page(tmp_path):
  output = tmp_path / "peers.md"
  command = [sys.executable, "-m", "benchmarks.peers", "--nano", f"--output={output}"]
  subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)
  page = output.read_text()
  norms = [line.split("|")[-2].strip() for line in page.splitlines() if line.startswith("| ours, ")]
  assert len(norms) == 2 and norms[0] == norms[1] and float(norms[0]) > 0
  assert "## sample: shape nano" in page and "- ours: jax==" in page


def test_page_has_ratios_and_versions():
  found = {
    "ours, prompt shared": [answer(1.0, grad_norm=2.0), answer(1.2, grad_norm=1.9)],
    "ours, sharing off": [answer(4.0, grad_norm=2.0)],
    "TRL": [answer(2.75, grad_norm=2.0)],
  }
  page = table.page([(ORDER, found)], command="COMMAND")
  lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line[:1] == "|"}
  assert "| 2.50 | 0.69 | 2.0000 |" in lines["TRL"]
  assert "- trl: torch==" in page
  assert lines["ours, prompt shared"].startswith("| ours, prompt shared | 1.1 (1, 1.2) | 116 |")
  assert len({line.count("|") for line in lines.values()}) == 1


def test_group_is_the_same_for_the_same_turn():
  prompt, responses, advantages = cases.group(ORDER, 3)
  assert cases.group(ORDER, 3) == (prompt, responses, advantages)
  assert cases.prompt(ORDER, 4, 0) != prompt
  assert len(prompt) == 24 and [len(ids) for ids in responses] == [8] * 4 and sum(advantages) == 0
  assert all(3 <= token < 512 for token in prompt)


def test_peer_answers_fails_and_ends(tmp_path):
  code = "from benchmarks.peers.worker import serve\n" + (
    "def prepare(order):\n"
    "  print('noise on stdout')\n"
    "  return lambda turn: {'seconds': order['seconds'] / turn}\n"
    "serve({'division': prepare})\n"
  )
  order = json.dumps({"case": "division", "seconds": 1})
  command, paths = [sys.executable, "-c", code, order], {"PYTHONPATH": str(ROOT)}
  fails, killed = (Peer(command, paths, tmp_path / name) for name in ("log", "other"))
  try:
    assert fails.ask(4)["seconds"] == 0.25 and killed.ask(2)["seconds"] == 0.5
    assert "noise on stdout" in (tmp_path / "log").read_text()
    with pytest.raises(RuntimeError, match="code 1, .*ZeroDivisionError"):
      fails.ask(0)
    killed.process.kill()
    killed.process.wait()
    with pytest.raises(RuntimeError, match="-9"):
      killed.ask(1)
  finally:
    fails.close()
    killed.close()
