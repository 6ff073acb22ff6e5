r"""Words and think blocks, counted by hand."""

import json
import os
import pathlib
import statistics
import subprocess
import sys

import pytest

from srl_jax.evals import reasoning as R

ROOT = pathlib.Path(__file__).resolve().parents[2]


def read(*responses, think_opened=False):
  return R.read({"think_opened": think_opened}, {"responses": list(responses)})


# As in the paper's Example 5.2: a plan, a thought on the way, a check before the answer.
INTERLEAVED = (
  "<think>First the area, then the angle.</think>\n1. Area: 12.\n<think>now the angle</think>\n"
  r"2. Angle: 30. <think>Let me double-check this.</think> So it is \boxed{30}."
)


def test_interleaved_by_hand():
  assert read(INTERLEAVED) == (23, 13, 10, ["planning", "between", "verification"])


@pytest.mark.parametrize(
  "text, kinds",
  [
    ("No block at all: 30.", []),
    ("<think>all of it</think> The answer is 30.", ["planning"]),
    ("<think>a</think> <think>b</think> text", ["planning", "planning"]),
    ("<think>never closed", ["planning"]),
    ("one <think>a</think> two", ["between"]),
    ("one <think>verify that</think> two", ["verification"]),
    ("one <think>verify that</think> two <think>on</think> three", ["between", "between"]),
    (r"\boxed{3} <think>hm</think> yes", ["verification"]),
    ("The answer is 3. <think>hm", ["verification"]),
    ("one <think>a checkerboard</think> two", ["between"]),
  ],
)
def test_kinds_of_blocks_by_hand(text, kinds):
  assert read(text).kinds == kinds


def test_blocks_count_the_one_that_the_template_opened():
  assert read("my plan</think> one two", think_opened=True) == (4, 2, 2, ["planning"])


def test_turns_of_an_episode_are_one_response():
  turns = ("<think>a b</think>1. one", "<think>c</think>2. two", r"<think>check</think>\boxed{3}")
  assert read(*turns) == (9, 4, 5, ["planning", "between", "verification"])


def test_describe_by_hand():
  found = R.describe([read(INTERLEAVED), read("<think>a</think> b"), read("b c d")])
  assert found["count"] == 3
  assert found["words"]["response"]["p50"] == 3 and found["words"]["response"]["max"] == 23
  assert found["words"]["response"]["mean"] == pytest.approx((23 + 2 + 3) / 3)
  assert found["blocks_per_response"] == pytest.approx(4 / 3)
  assert found["responses_by_blocks"] == {0: 1, 1: 1, 3: 1}
  assert found["kinds"]["planning"] == {"blocks": 2, "share": pytest.approx(2 / 3)}
  assert found["interleaved"] == found["monolithic"] == pytest.approx(1 / 3)


def test_difference_by_hand():
  """By problem: 3 - 1 = 2 and 5 - 1 = 4 words, the second over two samples; 3 on average."""
  words = lambda n: read(" ".join(["w"] * n))
  found = R.difference([[words(1)], [words(1)]], [[words(3)], [words(4), words(6)]])
  assert found["response"] == {
    "value": 3.0,
    "se": pytest.approx(1.0),
    "low": pytest.approx(3 - 1.96),
    "high": pytest.approx(3 + 1.96),
  }


def evaluation(folder, responses):
  """Writes the files of evaluate for {id: greedy response}."""
  settings = dict(model=folder.name, step=None, mode="whole", style="think", temperature=1.0)
  settings |= dict(max_tokens=9, engine="builtin", dtype="float32")
  (folder / "amc23").mkdir(parents=True)
  (folder / "settings.json").write_text(json.dumps(settings))
  with (folder / "amc23" / "greedy.jsonl").open("w") as file:
    for id, text in responses.items():
      line = {"id": id, "think_opened": False, "samples": [{"responses": [text]}]}
      file.write(json.dumps(line) + "\n")
  return folder


def command(*flags):
  return subprocess.run(
    [sys.executable, "-m", "srl_jax.evals.reasoning", *flags],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ,
  )


def test_reasoning_command_writes_its_figures(tmp_path):
  base = evaluation(tmp_path / "base", {"1": "one two", "2": "one", "3": "only here " * 50})
  srl = evaluation(tmp_path / "srl", {"1": INTERLEAVED, "2": "<think>a</think> b"})
  done = command(
    f"--evaluations={base},{srl}", "--labels=base,SRL <7B>", f"--output={tmp_path}/out"
  )
  assert done.returncode == 0, done.stderr
  assert "greedy responses to 2 problems" in done.stdout
  assert "difference in words, response: +11.0" in done.stdout  # 23 - 2 and 2 - 1
  found = json.loads((tmp_path / "out" / "reasoning.json").read_text())
  assert found["models"]["SRL <7B>"]["interleaved"] == 0.5
  assert found["models"]["base"]["settings"]["model"] == "base"
  assert found["pictures"]["kinds"]["SRL <7B>"]["verification"] == 0.5
  assert found["pictures"]["histograms"][0]["medians"] == {"base": 1.5, "SRL <7B>": 12.5}


def test_reasoning_command_refuses_bad_input(tmp_path):
  base = evaluation(tmp_path / "base", {"1": "one"})
  other = evaluation(tmp_path / "other", {"2": "two"})
  for flags, complaint in [
    ([f"--evaluations={base},{other}"], "have no problem in common"),
    ([f"--evaluations={base},{base}"], "give two folders"),
    ([f"--evaluations={base},{tmp_path}/none"], "it has none"),
    ([f"--evaluations={base},{other}", "--responses=sampled-8"], "it has greedy"),
  ]:
    done = command(*flags, f"--output={tmp_path}/out")
    assert done.returncode == 2
    assert complaint in done.stderr and done.stderr.count("\n") == 1
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "values",
  [[0, 0, 0], [1], [5, 5, 100_000], list(range(1000)), [3] * 999 + [10**6]],
  ids=["zeros", "one", "outlier", "even", "rare outlier"],
)
def test_histogram_shows_every_response(values):
  """The shares add up to 1: no response is beyond the end of the axis."""
  found = R.histogram({"a": values, "b": [0]})
  assert len(found["edges"]) == len(found["shares"]["a"]) + 1 == R.BINS + 1
  for shares in found["shares"].values():
    assert sum(shares) == pytest.approx(1)
  assert found["medians"]["a"] == statistics.median(values)


def test_histogram_by_hand():
  """Bins of one word up to the largest length, 30: a fifth of the lengths in each of five bins."""
  found = R.histogram({"a": [0, 1, 1, 2, 30]})
  assert found["edges"] == list(range(31))
  assert found["shares"]["a"][:3] == [0.2, 0.4, 0.2] and found["shares"]["a"][-1] == 0.2
