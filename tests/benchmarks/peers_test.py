"""benchmarks.peers: the whole run without peers, and the page that it writes."""

import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.peers import __main__ as main
from benchmarks.peers import cases, table
from benchmarks.peers.worker import Peer, PeerError

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORDER = {"shape": "nano", "prompt": 24, "response": 8, "samples": 4, "remat": False}


def answer(seconds, **more):
  return {"seconds": seconds, "wall": seconds, "cpu": 2 * seconds, "others": 0.0} | more


@pytest.mark.slow
def test_tiny_run_writes_the_page(tmp_path):
  output = tmp_path / "peers.md"
  command = [sys.executable, "-m", "benchmarks.peers", "--tiny", f"--output={output}"]
  subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)
  page = output.read_text()
  norms = [line.split("|")[-2].strip() for line in page.splitlines() if line.startswith("| ours, ")]
  assert len(norms) == 2 and norms[0] == norms[1] and float(norms[0]) > 0
  assert "sampled tokens/s" in page and "| standard library |" in page and "- ours: jax " in page


def test_page_says_which_goals_are_met():
  found = {
    "ours, prompt shared": [answer(1.0, grad_norm=2.0), answer(1.2, grad_norm=1.9)],
    "ours, sharing off": [answer(4.0, grad_norm=2.0)],
    "TRL": [answer(2.75, grad_norm=2.0)],
    "tunix": PeerError("the process ended; its output is in a log"),
  }
  page = table.page([("update", ORDER, found, {"TRL": {"trl": "1"}})], command="COMMAND", minutes=1)
  line = next(line for line in page.splitlines() if line.startswith("| TRL"))
  assert "2.50 (goal 2: met)" in line and "0.69 (goal 0.8: missed)" in line
  assert "failed: the process ended |" in page and "- TRL: trl 1" in page
  assert "| ours, prompt shared | 1.1 (1, 1.2) | 2.2 | 116 |" in page


def test_who_fails_beside_the_others_has_another_go_alone(tmp_path, monkeypatch):
  together = []

  def in_turn(case, order, who, rounds, folder):
    together.append(list(who))
    fails = lambda name: name == "broken" or (name == "large" and len(who) > 1)
    found = {name: PeerError("ended") if fails(name) else [answer(2.0)] for name in who}
    return found, {name: {"x": "1"} for name in who}

  monkeypatch.setattr(main, "in_turn", in_turn)
  found, _ = main.measure("sample", {}, dict.fromkeys(["ours", "large", "broken"]), 1, tmp_path)
  assert together == [["ours", "large", "broken"], ["large"], ["broken"]]
  assert "alone" not in found["ours"][0] and isinstance(found["broken"], PeerError)
  lines = table.rows("sample", ORDER | {"prompts": 1}, found)
  assert any(
    line.startswith("| large (alone: it failed beside the others) | 2 (2)") for line in lines
  )


def test_page_says_who_went_in_micro_batches():
  found = {"whole": [answer(2.0)], "cut": [answer(2.0) | {"micro_batches": 4}]}
  lines = table.rows("sample", ORDER | {"prompts": 1}, found)
  assert lines[-2].startswith("| whole |")
  assert lines[-1].startswith("| cut (in 4 micro-batches) |")


def test_page_holds_seconds_to_their_goal():
  order = {"pairs": 4096, "characters": 2000}
  of = lambda seconds: table.rows("reward", order, {"ours, 2 processes": [answer(seconds)]})[-1]
  assert "met" in of(14.0) and "missed" in of(16.0)


def test_others_are_a_share_of_the_machine():
  found = {"ours": [answer(2.0) | {"others": os.cpu_count() * 1.0}]}
  page = table.page(
    [("reward", {"pairs": 1, "characters": 1}, found, {})], command="COMMAND", minutes=1
  )
  assert "Other work took 50% of it" in page


def test_work_is_the_same_for_the_same_turn():
  prompt, responses, advantages = cases.group(ORDER, 3)
  assert cases.group(ORDER, 3) == (prompt, responses, advantages)
  assert cases.prompt(ORDER, 4, 0) != prompt
  assert len(prompt) == 24 and [len(ids) for ids in responses] == [8] * 4 and sum(advantages) == 0
  assert all(3 <= token < 512 for token in prompt)
  pairs = cases.text_pairs(3, 100, 0)
  assert len(set(pairs)) == 3 and all(len(text) == 100 for pair in pairs for text in pair)


def test_a_peer_answers_fails_and_ends(tmp_path):
  code = "from benchmarks.peers.worker import serve\n" + (
    "def prepare(order):\n"
    "  print('noise on stdout')\n"
    "  return lambda turn: {'seconds': 1 / turn}, {'thing': '2'}\n"
    "serve({'division': prepare})\n"
  )
  peer = Peer([sys.executable, "-c", code], {"PYTHONPATH": str(ROOT)}, tmp_path / "log")
  try:
    assert peer.ask({"case": "division"})["versions"] == {"thing": "2"}
    found = peer.ask({"turn": 4})
    assert found["seconds"] == 0.25 and found["cpu"] >= 0 and found["others"] >= 0
    with pytest.raises(PeerError, match="ZeroDivisionError: division by zero"):
      peer.ask({"turn": 0})
    assert "noise on stdout" in (tmp_path / "log").read_text()
    peer.process.kill()
    peer.process.wait()
    with pytest.raises(PeerError, match=r"the process ended \(it was killed"):
      peer.ask({"turn": 1})
  finally:
    peer.close()
