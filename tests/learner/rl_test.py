"""The training loop with a scripted engine: prompts, updates, written files, summary."""

import json
import math
import pathlib
import random

import jax
import numpy as np
import pytest

from configs import quickstart
from srl_jax import config as common
from srl_jax import train
from srl_jax.data.tokenizer import load_tokenizer
from srl_jax.errors import EngineError, Stopped, UserError
from srl_jax.learner import rl, setup, update
from srl_jax.learner.checkpoint import Checkpoints
from srl_jax.learner.stop import StopSignal
from srl_jax.policy.sharding import make_mesh
from srl_jax.rollout.engine import Rollout

MODEL = pathlib.Path(__file__).resolve().parents[2] / "configs" / "miniature"


class Scripted:
  """An engine that draws responses from a list, with the log-probs of a uniform distribution."""

  def __init__(self, texts):
    self.tokenizer, self.texts = load_tokenizer(MODEL), texts
    self.versions, self.params, self.asked = [], [], []

  def load_weights(self, model, version):
    self.versions.append(version)

  def sample(self, batch, n, params):
    self.params.append(params)
    self.asked += [prompt.id for prompt in batch] if params.temperature else []
    for prompt in batch:
      rng = random.Random(f"{prompt.id}/{params.step}")
      group = []
      for text in (rng.choice(self.texts) for _ in range(n)):
        ids = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], 5)
        logprobs = (-math.log(len(self.tokenizer)),) * len(ids)
        group.append(Rollout(prompt.id, ids, logprobs, "stop", self.versions[-1], text))
      yield group

  def stats(self):
    return {"engine_wait": 0.5}

  def close(self):
    pass


GOOD = ["<think>4+3</think>1. **Add 3**: 7", "<think>4</think>2. **Add 1**: 20", "1. **Add 3**: 7"]


def lines_of(workdir):
  """The lines of metrics; that of step 0 is the validation before step 1."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture
def run(tmp_path, monkeypatch):
  """run(texts, **config values) -> (summary, metrics of steps, engine) of a run of three steps."""

  def go(texts, workdir=tmp_path, **values):
    config = quickstart.get_config("steps=3")
    config.model, config.init_from = str(MODEL), "random"
    values = (
      dict(batch__prompts=4, rollout__samples=4, eval__benchmark="", eval__mode="off") | values
    )
    values = dict(data__holdout=2, train__eval_every=2, log__tensorboard=False) | values
    values |= dict(data__path="hard:6")
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    common.check(config)
    engine = Scripted(texts)
    monkeypatch.setattr(setup, "make_engine", lambda *args: engine)
    with jax.set_mesh(make_mesh("data=1")):
      summary = train.run_training(config, workdir)
    rows = [row for row in lines_of(workdir) if row["step"]]
    return summary, rows, engine

  return go


def test_train_logs_steps_rollouts_and_a_summary(run, tmp_path):
  summary, rows, engine = run(GOOD)
  assert [row["step"] for row in rows] == [1, 2, 3] and summary["steps"] == 3
  assert engine.versions == [0, 1, 2, 3]  # version 0 is loaded before anything is sampled
  trained = {"loss", "grad_norm", "entropy", "ratio", "clip_fraction", "importance_weight"}
  trained |= {"logprob_gap_mean", "packed_share", "reward_mean", "reward_formed_mean", "rounds"}
  trained |= {"groups_kept", "response_tokens_mean", "monologue_words_mean", "truncated_share"}
  trained |= {"seconds_sample", "seconds_reward", "seconds_update", "seconds_sync", "epoch"}
  trained |= {"tokens_per_second", "engine_wait"}
  for row in rows:
    assert trained <= row.keys()
    assert row["ratio"] == pytest.approx(1) and row["clip_fraction"] == 0
    assert 0 < row["packed_share"] <= 1 and row["grad_norm"] > 0
    groups = (tmp_path / "rollouts" / f"step_{row['step']:06d}.jsonl").read_text().splitlines()
    assert len(groups) == row["groups_sampled"] >= 4
    assert sum(json.loads(group)["kept"] for group in groups) == row["groups_kept"]
  assert {"validation_reward", "validation_failures", "seconds_validate"} <= rows[1].keys()
  start = lines_of(tmp_path)[0]
  assert start["step"] == 0 and start["validation_failures"] > 0
  scores = {"0": start["validation_reward"], "2": rows[1]["validation_reward"]}
  assert summary["validation"] == scores and summary["best_step"] == 2
  assert not summary.keys() & {"before", "after"}
  assert start["programs_compiled"] + start["programs_loaded"] > 0
  assert all(row["programs_compiled"] == row["programs_loaded"] == 0 for row in rows[1:])


def test_train_makes_no_second_pass_for_one_step_a_batch(run, tmp_path, monkeypatch):
  """One step needs no log-prob pass besides the update, importance weights included; two do."""
  score, calls = update.logprobs_of, []
  count = lambda *args, **how: calls.append(1) or score(*args, **how)
  count.lower = score.lower  # programs are compiled ahead
  monkeypatch.setattr(update, "logprobs_of", count)
  _, rows, _ = run(GOOD)
  assert rows[0]["importance_weight"] > 0 and not calls
  run(GOOD, tmp_path / "two", algorithm__steps_per_batch=2)
  assert calls


def test_train_samples_prompts_in_their_order(run):
  """Their ids are new in every epoch."""
  _, rows, engine = run(GOOD, algorithm__dynamic_sampling=False)
  assert len(engine.asked) == len(set(engine.asked)) == 12
  assert [params.step for params in engine.params if params.temperature] == [0, 1, 2]
  assert rows[-1]["epoch"] == pytest.approx(12 / 36)
  assert all(row["groups_kept"] == 4 for row in rows)


def test_train_takes_several_steps_on_a_batch(run):
  """The second and third are off-policy: some tokens are clipped, and the ratio is not 1."""
  _, rows, _ = run(GOOD, algorithm__steps_per_batch=3, optimizer__lr=3e-3, batch__prompts=6)
  assert any(row["clip_fraction"] > 0 for row in rows)
  assert all(abs(row["ratio"] - 1) > 1e-4 for row in rows)


def test_train_measures_the_logprob_gap_before_the_update(run, tmp_path):
  """It does not depend on how far the steps on a batch move the policy."""
  several, gaps = dict(algorithm__steps_per_batch=3, batch__prompts=6), []
  for lr in (1e-9, 3e-3):
    _, rows, _ = run(GOOD, tmp_path / str(lr), optimizer__lr=lr, **several)
    gaps.append(rows[0]["logprob_gap_mean"])
  assert gaps[0] == pytest.approx(gaps[1], rel=1e-5)


def test_train_keeps_the_metrics_of_a_step_whose_push_fails(run, tmp_path, monkeypatch):
  """The trained step is saved with its line of metrics, and the next run continues after it."""
  load_weights = Scripted.load_weights

  def failing(self, model, version):
    if version == 2:
      raise EngineError("the server is away")
    load_weights(self, model, version)

  monkeypatch.setattr(Scripted, "load_weights", failing)
  with pytest.raises(EngineError):
    run(GOOD, log__tensorboard=False)
  monkeypatch.undo()
  _, rows, engine = run(GOOD)
  assert [row["step"] for row in rows] == [1, 2, 3] and engine.versions == [2, 3]
  assert rows[1]["grad_norm"] > 0


def test_train_with_a_reference_policy_reports_its_kl(run):
  """KL to the start weights: 0 in the first step, greater in the later ones."""
  _, rows, _ = run(GOOD, algorithm__kl=0.1)
  assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
  assert rows[2]["kl"] > rows[1]["kl"] > 1e-6


def test_train_without_held_out_examples_keeps_the_last_step(run):
  summary, rows, _ = run(GOOD, data__holdout=0)
  assert summary["validation"] == {} and summary["best_step"] == 3
  assert "validation_reward" not in rows[1]


def test_train_ends_after_ten_steps_without_a_group(run, tmp_path):
  """No response follows the format: an error after ten steps without a group to train on."""
  with pytest.raises(ValueError, match="step 10: 10 steps"):
    run(["no monologue"], train__steps=50)
  rows = lines_of(tmp_path)[1:]
  assert len(rows) == 9 and all(row["groups_kept"] == 0 and "loss" not in row for row in rows)
  assert rows[0]["dropped_all_failed"] == rows[0]["groups_sampled"] == 12  # three rounds of four
  assert rows[0]["failure_no_open"] == 48


def test_train_warns_of_a_first_step_without_a_well_formed_response(run, capsys):
  """A single warning with three samples, their reason, and remedies for the format alone."""
  with pytest.raises(UserError) as error:
    run(["no monologue"], train__steps=50)
  said = capsys.readouterr().out
  assert said.count("'no monologue'") == 3 and "no_open 48" in said
  for text in (said, str(error.value)):
    assert "std_epsilon" not in text and "prompt.example=True" in text
  run(GOOD)
  assert "well-formed" not in capsys.readouterr().out


def test_train_names_the_step_of_a_loss_that_is_not_finite(run, tmp_path, monkeypatch):
  """The last checkpoint is left unchanged."""
  train_on, calls = rl.train_on, []

  def poisoned(run, *args):
    calls.append(1)
    if len(calls) == 3:
      run.state.model.norm.set_value(run.state.model.norm[...] * np.nan)
    return train_on(run, *args)

  monkeypatch.setattr(rl, "train_on", poisoned)
  with pytest.raises(UserError, match="step 3: loss nan"):
    run(GOOD, train__save_every=1)
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.steps()[-1] == 2
  checkpoints.close()


def test_train_ends_by_its_epochs(run):
  """36 prompts, four a step, one epoch without dynamic sampling: nine steps."""
  summary, rows, engine = run(
    GOOD, train__steps=0, train__epochs=1, algorithm__dynamic_sampling=False, train__eval_every=0
  )
  assert summary["steps"] == len(rows) == 9 and rows[-1]["epoch"] == 1
  assert {id.split("@")[1] for id in engine.asked} == {"0"} and len(set(engine.asked)) == 36


# ---- one batch ahead (rollout.lag = 1)


@pytest.fixture
def lagged(run, monkeypatch):
  """run(...) with rollout.lag=1, which the built-in engine does not have."""
  checked = common.check
  monkeypatch.setattr(common, "check", lambda config: None)
  yield lambda texts, **values: run(texts, **{"rollout__lag": 1} | values)
  monkeypatch.setattr(common, "check", checked)


def test_train_with_lag_samples_with_the_weights_of_the_step_before(lagged, tmp_path):
  """Step k trains on rollouts of version k - 2, one older than the newest."""
  off = dict(algorithm__dynamic_sampling=False)
  _, rows, engine = lagged(GOOD, train__steps=4, **off)
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  versions = []
  for step in (1, 2, 3, 4):
    lines = (tmp_path / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()
    found = {version for line in lines for version in json.loads(line)["weight_versions"]}
    assert len(found) == 1
    versions.append(found.pop())
  assert versions == [0, 0, 1, 2]
  assert len(engine.asked) == len(set(engine.asked))  # nothing is sampled twice


def test_train_with_lag_raises_an_error_before_the_next_push(lagged, monkeypatch):
  sample, load_weights, pushed = Scripted.sample, Scripted.load_weights, []

  def failing(self, batch, n, params):
    if params.step == 1:
      raise UserError("the server refuses the request")
    yield from sample(self, batch, n, params)

  def load(self, model, version):
    pushed.append(version)
    load_weights(self, model, version)

  monkeypatch.setattr(Scripted, "sample", failing)
  monkeypatch.setattr(Scripted, "load_weights", load)
  with pytest.raises(UserError, match="refuses the request"):
    lagged(GOOD)
  assert pushed == [0]


def test_train_stopped_with_a_batch_in_flight_draws_it_again(lagged, tmp_path, monkeypatch):
  """No prompt is lost: the queue of the checkpoint is that before the batch in flight."""
  wanted = lagged(GOOD, train__steps=4, algorithm__dynamic_sampling=False)[2].asked
  for path in sorted(tmp_path.rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  stop = StopSignal.raise_if_any_stopped
  calls = []

  def stop_after_two_steps(self):
    if (tmp_path / "metrics.jsonl").exists():
      calls.append(len((tmp_path / "metrics.jsonl").read_text().splitlines()))
      if calls[-1] == 3:  # of steps 0, 1 and 2
        raise Stopped("SIGTERM")
    stop(self)

  monkeypatch.setattr(StopSignal, "raise_if_any_stopped", stop_after_two_steps)
  with pytest.raises(Stopped):
    lagged(GOOD, train__steps=4, algorithm__dynamic_sampling=False)
  monkeypatch.setattr(StopSignal, "raise_if_any_stopped", stop)
  again = lagged(GOOD, train__steps=4, algorithm__dynamic_sampling=False)[2].asked
  assert again == wanted[8:]  # steps 3 and 4; step 3 had been sampled before the stop
