"""The metrics of a step, by hand."""

import json
import math
import pathlib
import time
import types

import numpy as np
import pytest

from srl_jax.data.examples import StepExample
from srl_jax.learner import metrics
from srl_jax.learner.dynamic_sampling import Batch, Group, numbers_of
from srl_jax.policy.hf_files import load_config
from srl_jax.rollout.engine import Prompt, Rollout
from srl_jax.tasks import Score

MODEL = pathlib.Path(__file__).resolve().parents[2] / "configs" / "miniature"


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


CONFIG = load_config(MODEL)
KEPT = group([0.5, 1.0, -1.0, 0.0], [None, None, "no_open", None], [4, 8, 2, 2])
DROPPED = group([-1.0] * 4, ["cut_off"] * 3 + ["no_open"], [10] * 4, "all_failed", index=1)
SURPLUS = group([0.2, 0.4, 0.2, 0.4], [None] * 4, [1] * 4, "surplus", index=2)
BATCH = Batch([KEPT], [KEPT, DROPPED, SURPLUS], rounds=2, seconds_reward=0.25)


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
    "seconds_reward": 0.25,
  }
  assert found == pytest.approx(wanted)
  assert all(type(value) is float for value in found.values())
  json.dumps(found)


def test_batch_metrics_of_failures_has_no_formed_reward():
  found = metrics.batch_metrics(Batch([], [DROPPED], rounds=1))
  assert found["reward_formed_mean"] == found["reward_formed_std"] == 0 and found["kept_share"] == 0


def test_logprob_gap_by_hand():
  found = metrics.logprob_gap(np.array([0.5, 1.0]))
  assert found["logprob_gap_mean"] == pytest.approx(0.75)
  assert found["logprob_gap_exp"] == pytest.approx(math.exp(0.75))
  assert 0.99 < found["logprob_gap_p99"] <= 1.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logprob_gap_of_nan_is_nan(wrong):
  assert not math.isfinite(metrics.logprob_gap(np.array([wrong, 1.0]))["logprob_gap_mean"])


def test_phases_add_up_seconds():
  timers = metrics.Timers()
  for _ in range(2):
    with timers("sample"):
      time.sleep(0.01)
  with pytest.raises(KeyError), timers("update"):
    raise KeyError
  found = timers.take()
  assert found.keys() == {"seconds_sample", "seconds_update"}
  assert 0.02 <= found["seconds_sample"] < 1 and timers.take() == {}


# ---- speed


def test_speed_metrics_without_a_known_peak_has_no_mfu():
  """A CPU has none: tokens a second of the work, and no MFU."""
  seconds = {"seconds_sample": 1.0, "seconds_update": 0.5, "seconds_validate": 9.0}
  found = metrics.speed(types.SimpleNamespace(config=CONFIG, lora=None), BATCH, seconds)
  assert found == seconds | {"seconds_step": 1.5, "tokens_per_second": 40.0}
