"""What a run writes down, by hand; and that a continued run's files have no step twice."""

import builtins
import json
import math
import time
import types

import numpy as np
import pytest

from srl_jax.data.sources import StepExample
from srl_jax.learner import metrics
from srl_jax.learner.dynamic_sampling import Batch, Group
from srl_jax.rollout.engine import Prompt, Rollout
from srl_jax.tasks import Score


def group(rewards, failures, lengths, dropped=None, prompt=3, index=0):
  """A group whose action i has i + 1 words and whose monologues have two."""
  example = StepExample(f"p/{index}", "p", "srl", "2 + 2?", ["One."], None, "Two.", "4")
  scores, rollouts = [], []
  for i, (reward, failure, length) in enumerate(zip(rewards, failures, lengths)):
    scores.append(Score(reward, failure, " ".join(["word"] * (i + 1)), "two words"))
    reason = "length" if failure == "cut_off" else "stop"
    rollouts.append(Rollout(example.id, (1,) * length, (-1.0,) * length, reason, 7, f"text {i}"))
  return Group((0, index), example, Prompt(example.id, (1,) * prompt), rollouts, scores, dropped)


KEPT = group([0.5, 1.0, -1.0, 0.0], [None, None, "no_open", None], [4, 8, 2, 2])
DROPPED = group([-1.0] * 4, ["cut_off"] * 3 + ["no_open"], [10] * 4, "all_failed", index=1)
SURPLUS = group([0.2, 0.4, 0.2, 0.4], [None] * 4, [1] * 4, "surplus", index=2)
BATCH = Batch([KEPT], [KEPT, DROPPED, SURPLUS], rounds=2)


def test_batch_metrics_by_hand():
  found = metrics.batch_metrics(BATCH)
  rewards = [0.5, 1.0, -1.0, 0.0, *[-1.0] * 4, 0.2, 0.4, 0.2, 0.4]
  formed = [0.5, 1.0, 0.0, 0.2, 0.4, 0.2, 0.4]
  stds = [np.std([0.5, 1.0, -1.0, 0.0]), 0, 0.1]
  wanted = {
    "reward_mean": np.mean(rewards),
    "reward_std": np.std(rewards),
    "reward_group_std": np.mean(stds),
    "reward_formed_mean": np.mean(formed),
    "reward_formed_std": np.std(formed),
    "format_failures": 5 / 12,
    "failure_no_open": 2,
    "failure_cut_off": 3,
    "groups_sampled": 3,
    "groups_kept": 1,
    "kept_share": 2 / 3,  # surplus would have taught
    "dropped_all_failed": 1,
    "dropped_surplus": 1,
    "rounds": 2,
    "response_tokens_mean": 60 / 12,
    "response_tokens_max": 10,
    "monologue_words_mean": 2,
    "action_words_mean": 2.5,
    "truncated_share": 3 / 12,
    "sampled_tokens": 60,
  }
  assert found == pytest.approx(wanted)
  assert all(type(value) is float for value in found.values())
  json.dumps(found)


def test_nothing_but_failures_has_no_formed_reward():
  found = metrics.batch_metrics(Batch([], [DROPPED], rounds=1))
  assert found["reward_formed_mean"] == found["reward_formed_std"] == 0 and found["kept_share"] == 0


def test_logprob_gap_by_hand():
  found = metrics.logprob_gap(np.array([-1.0, -2.0]), np.array([-1.5, -1.0]))
  assert found["logprob_gap_mean"] == pytest.approx(0.75)
  assert found["logprob_gap_exp"] == pytest.approx(math.exp(0.75))
  assert 0.99 < found["logprob_gap_p99"] <= 1.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
def test_logprob_gap_leaves_complaints_to_the_step(wrong):
  assert not math.isfinite(
    metrics.logprob_gap(np.array([wrong, -2.0]), np.array([-1.5, -1.0]))["logprob_gap_mean"]
  )


def test_rollout_lines_have_all_that_is_needed_to_read_them():
  first, *_ = map(json.loads, metrics.rollout_lines(BATCH.groups).splitlines())
  assert first == {
    "prompt_id": "p/0",
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
    json.loads(line)["dropped"] for line in metrics.rollout_lines(BATCH.groups).split("\n")[:3]
  ]
  assert dropped == [None, "all_failed", "surplus"]


def test_phases():
  phases = metrics.Phases()
  for _ in range(2):
    with phases("sample"):
      time.sleep(0.01)
  with pytest.raises(KeyError), phases("update"):
    raise KeyError
  found = phases.take()
  assert found.keys() == {"seconds_sample", "seconds_update"}
  assert 0.02 <= found["seconds_sample"] < 1 and phases.take() == {}


# ---- files


def log(workdir, step, **given):
  settings = types.SimpleNamespace(**dict(tensorboard=False, wandb="") | given)
  return metrics.Log(workdir, settings, step=step, name="run", config={})


def steps_of(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rollouts = sorted(path.name for path in (workdir / "rollouts").iterdir())
  return [json.loads(line)["step"] for line in lines], rollouts


def test_files_are_cut_back_to_the_checkpoint(tmp_path):
  """Later steps, a line that a kill cut in two, and half a rollout file are gone."""
  first = log(tmp_path, 0)
  for step in (1, 2, 3):
    first.write_rollouts(step, [KEPT])
    first.step(step, {"loss": 0.5})
  with first.metrics.open("a") as file:
    file.write('{"step": 4, "lo')
  (first.rollouts / "step_000004.partial").write_text("half")
  assert steps_of_names(2) != steps_of_names(3)
  second = log(tmp_path, 2)
  assert steps_of(tmp_path) == ([1, 2], steps_of_names(2))
  second.write_rollouts(3, [KEPT])
  second.step(3, {"loss": 0.5})
  assert steps_of(tmp_path) == ([1, 2, 3], steps_of_names(3))
  log(tmp_path, 0)
  assert steps_of(tmp_path) == ([], [])


def steps_of_names(last):
  return [f"step_{step:06d}.jsonl" for step in range(1, last + 1)]


def test_a_step_without_rollouts_writes_its_line(tmp_path):
  log(tmp_path, 0).step(1, {"loss": 0.25})
  line = {"step": 1, "loss": 0.25, "programs_compiled": 0}
  assert json.loads((tmp_path / "metrics.jsonl").read_text()) == line
  assert steps_of(tmp_path) == ([1], [])


def test_tensorboard_keeps_the_step_that_a_run_continues_from(tmp_path):
  """The checkpoint is of step 2: the board hides what was logged from step 3 on, and not 2."""
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  writer = log(tmp_path, 2, tensorboard=True)
  writer.step(3, {"loss": 0.5})
  writer.tell()
  writer.step(4, {"loss": 0.25})  # told of when the log is closed
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
  compiled = [("programs_compiled", step, 0.0) for step in (3, 4)]
  assert sorted(values) == [("loss", 3, 0.5), ("loss", 4, 0.25), *compiled]


def test_wandb_is_asked_for_by_name(tmp_path, monkeypatch):
  imported = builtins.__import__

  def without(name, *args, **kwargs):
    if name == "wandb":
      raise ImportError(name)
    return imported(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(ValueError, match="log.wandb: 'mine' needs the package wandb; pip install"):
    log(tmp_path, 0, wandb="mine")


# ---- speed


def test_speed_without_a_known_peak():
  """A CPU has none: tokens a second of the work, and no MFU."""
  seconds = {"seconds_sample": 1.0, "seconds_update": 0.5, "seconds_validate": 9.0}
  found = metrics.speed(1e9, 60, seconds)
  assert found == seconds | {"seconds_step": 1.5, "tokens_per_second": 40.0}
