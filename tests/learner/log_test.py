"""The files of a run: every step's line and rollouts, and no step twice after a restart."""

import builtins
import dataclasses
import json
import sys
import types

import pytest

from srl_jax.data.examples import StepExample
from srl_jax.errors import UserError
from srl_jax.learner import log as logs
from srl_jax.learner.dynamic_sampling import Batch, Group, numbers_of
from srl_jax.rollout.engine import Prompt, Rollout
from srl_jax.tasks import Score


def group(rewards, failures, lengths, dropped=None, prompt=3, index=0):
  """A group of responses with i + 1 words in action i and two in each monologue."""
  example = StepExample(f"p/{index}", "p", "srl", "2 + 2?", ["One."], None, "Two.", "4")
  scores, rollouts = [], []
  for i, (reward, failure, length) in enumerate(zip(rewards, failures, lengths)):
    scores.append(Score(reward, failure, " ".join(["word"] * (i + 1)), "two words"))
    reason = "length" if failure == "cut_off" else "stop"
    rollouts.append(Rollout(example.id, (1,) * length, (-1.0,) * length, reason, 7, f"text {i}"))
  numbers, prompt = numbers_of(rollouts, scores), Prompt(example.id, (1,) * prompt)
  return Group((0, index), example, prompt, numbers, 0, rollouts, scores, dropped)


KEPT = group([0.5, 1.0, -1.0, 0.0], [None, None, "no_open", None], [4, 8, 2, 2])
DROPPED = group([-1.0] * 4, ["cut_off"] * 3 + ["no_open"], [10] * 4, "all_failed", index=1)
SURPLUS = group([0.2, 0.4, 0.2, 0.4], [None] * 4, [1] * 4, "surplus", index=2)
BATCH = Batch([KEPT], [KEPT, DROPPED, SURPLUS], rounds=2)


def test_rollout_lines_have_all_that_is_needed_to_read_them():
  first, *_ = map(json.loads, logs.rollout_lines(BATCH.groups).splitlines())
  assert first == {
    "group": 0,
    "prompt_id": "p/0",
    "task": "srl",
    "prompt_tokens": 3,
    "problem": "2 + 2?",
    "context": ["One."],
    "hint": None,
    "target": "Two.",
    "texts": ["text 0", "text 1", "text 2", "text 3"],
    "actions": ["word", "word word", "word word word", "word word word word"],
    "rewards": [0.5, 1.0, -1.0, 0.0],
    "failures": [None, None, "no_open", None],
    "weight_versions": [7] * 4,
    "kept": True,
    "dropped": None,
  }
  dropped = [
    json.loads(line)["dropped"] for line in logs.rollout_lines(BATCH.groups).split("\n")[:3]
  ]
  assert dropped == [None, "all_failed", "surplus"]


def test_rollout_lines_leave_out_groups_of_other_processes():
  elsewhere = dataclasses.replace(KEPT, process=1, rollouts=None, scores=None)
  lines = logs.rollout_lines([elsewhere, DROPPED, elsewhere, SURPLUS]).splitlines()
  found = [(line["group"], line["prompt_id"]) for line in map(json.loads, lines)]
  assert found == [(1, "p/1"), (3, "p/2")]


# ---- files


def log(workdir, step, **given):
  settings = types.SimpleNamespace(**dict(report=False, tensorboard=False, wandb="") | given)
  return logs.Log(workdir, settings, step=step, name="run", config={})


def steps_of(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rollouts = sorted(path.name for path in (workdir / "rollouts").iterdir())
  return [json.loads(line)["step"] for line in lines], rollouts


def test_log_cuts_files_back_to_the_checkpoint(tmp_path):
  """Later steps, a line that a kill cut in two, and half a rollout file are gone."""
  first = log(tmp_path, 0)
  for step in (1, 2, 3):
    first.write_rollouts(step, [KEPT])
    first.step(step, {"loss": 0.5})
  with first.metrics.open("a") as file:
    file.write('{"step": 4, "lo')
  (first.rollouts / "step_000004.partial").write_text("half")
  for name in ("step_000003.001.jsonl", "step_000003.001.partial"):  # of another process
    (first.rollouts / name).write_text("")
  assert steps_of_names(2) != steps_of_names(3)
  second = log(tmp_path, 2)
  assert steps_of(tmp_path) == ([1, 2], steps_of_names(2))
  second.write_rollouts(3, [KEPT])
  second.step(3, {"loss": 0.5})
  assert steps_of(tmp_path) == ([1, 2, 3], steps_of_names(3))
  log(tmp_path, 0)
  assert steps_of(tmp_path) == ([], [])


def test_other_files_in_the_folder_of_rollouts_are_left_alone(tmp_path):
  first = log(tmp_path, 0)
  first.write_rollouts(1, [KEPT])
  first.step(1, {"loss": 0.5})
  mine = ["notes.txt", "step_000001.jsonl.gz", "step_two.jsonl", "step_000009_old.jsonl"]
  for name in mine:
    (first.rollouts / name).write_text("mine")
  (first.rollouts / "step_folder").mkdir()
  log(tmp_path, 0)
  assert steps_of(tmp_path)[1] == sorted([*mine, "step_folder"])


DAMAGED_LINES = {
  "zeros after a line": b'{"step": 1}\n{"step": 2}\n' + bytes(300),
  "zeros in place of lines": b'{"step": 1}\n' + bytes(50) + b'\n{"step": 2}\n' + bytes(9) + b"\n",
  "half a letter": b'{"step": 1}\n{"step": 2}\n{"loss": "\xe2\x82"}\n',
  "no object": b'{"step": 1}\n{"step": 2}\n[1]\n{"step": "3"}\n{}\n' + b"[" * 99999 + b"\n",
}


@pytest.mark.parametrize("name", DAMAGED_LINES)
def test_log_leaves_out_damaged_lines(tmp_path, capsys, name):
  """Lines that can be read are kept, as after a power failure."""
  (tmp_path / "metrics.jsonl").write_bytes(DAMAGED_LINES[name])
  log(tmp_path, 2).step(3, {})
  assert steps_of(tmp_path)[0] == [1, 2, 3]
  assert ("metrics.jsonl" in capsys.readouterr().err) == (name != "zeros after a line")


def steps_of_names(last):
  return [f"step_{step:06d}.jsonl" for step in range(1, last + 1)]


def test_log_writes_a_step_without_rollouts(tmp_path):
  log(tmp_path, 0).step(1, {"loss": 0.25})
  assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.25}
  assert steps_of(tmp_path) == ([1], [])


def test_log_keeps_tensorboards_steps_up_to_the_checkpoint(tmp_path):
  """The checkpoint is of step 2: the board hides what was logged from step 3 on, and not 2."""
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  writer = log(tmp_path, 2, tensorboard=True)
  writer.step(3, {"loss": 0.5})
  writer.step(4, {"loss": 0.25})
  writer.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  data, events = path.read_bytes(), []
  while data:  # records: length, 4 bytes, event, 4 bytes
    length = int.from_bytes(data[:8], "little")
    events.append(Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  starts = [e.step for e in events if e.session_log.status == SessionLog.START]
  assert starts == [3]
  values = [(v.tag, e.step, v.simple_value) for e in events for v in e.summary.value]
  assert sorted(values) == [("loss", 3, 0.5), ("loss", 4, 0.25)]


def test_log_names_the_missing_package_wandb(tmp_path, monkeypatch):
  imported = builtins.__import__

  def without(name, *args, **kwargs):
    if name == "wandb":
      raise ImportError(name)
    return imported(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(ValueError, match="log.wandb: 'mine'"):
    log(tmp_path, 0, wandb="mine")


@pytest.fixture
def wandb(monkeypatch):
  """Replaces the package by one that records the arguments of `init`."""
  fake = types.SimpleNamespace(calls=[], fault=None)

  def init(**how):
    if fake.fault:
      raise fake.fault
    fake.calls.append(how)
    return types.SimpleNamespace(log=lambda *args, **how: None, finish=lambda: None)

  fake.init = init
  monkeypatch.setitem(sys.modules, "wandb", fake)
  return fake


def test_log_opens_one_wandb_run_a_workdir(wandb, tmp_path):
  """Two with one last name do not share one, and a continued workdir has the one that it had."""
  for folder in ("a/srl", "b/srl", "a/srl"):
    log(tmp_path / folder, 0, wandb="project").close()
  first, second, again = (call["id"] for call in wandb.calls)
  assert first == again != second
  assert all(call["resume"] == "allow" and call["name"] == "run" for call in wandb.calls)


def test_log_reports_what_wandb_refuses(wandb, tmp_path):
  wandb.fault = RuntimeError("api_key not configured (no-tty).\nCall wandb.login")
  with pytest.raises(UserError, match="api_key not configured.*WANDB_API_KEY") as error:
    log(tmp_path, 0, wandb="project")
  assert "\n" not in str(error.value)
