"""Supervised runs: which examples a step has, what is learnt, and the stop rule."""

import json
import pathlib

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import miniature_base
from srl_jax import train
from srl_jax.learner import sft, update
from srl_jax.learner.checkpoint import Checkpoints
from srl_jax.policy.sharding import make_mesh

MODEL = pathlib.Path(__file__).resolve().parents[2] / "configs" / "miniature"
VOCABULARY = json.loads((MODEL / "config.json").read_text())["vocab_size"]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_every_example_once_an_epoch(count, size, seed):
  """The last batch of an epoch may be short; the order is another one in every epoch."""
  per_epoch = -(-count // size)
  batches = [sft.batch_of(step, count, size, seed) for step in range(2 * per_epoch)]
  assert [len(b) for b in batches[: per_epoch - 1]] == [size] * (per_epoch - 1)
  for epoch in range(2):
    dealt = sum(batches[epoch * per_epoch : (epoch + 1) * per_epoch], [])
    assert sorted(dealt) == list(range(count))
  if count > 10:
    assert sum(batches[:per_epoch], []) != sum(batches[per_epoch:], [])


@pytest.fixture
def run(tmp_path, monkeypatch):
  """run(**config values) -> (summary, metrics rows) of a small run."""

  def go(**values):
    config = miniature_base.get_config()
    config.model = str(MODEL)
    given = dict(data__path="mix:16", data__holdout=2, batch__prompts=8, rollout__width=32)
    given |= dict(train__steps=4, train__eval_every=2, log__tensorboard=False) | values
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in given.items()})
    with jax.set_mesh(make_mesh("data=1")):
      summary = train.run_training(config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    return summary, [json.loads(line) for line in lines]

  return go


def test_a_run_learns_and_tells(run, tmp_path, monkeypatch):
  """The trained tokens are the responses and their end, and nothing of the prompts."""
  trained, train_step = [], update.train_step

  def spy(tx, state, batches, loss):
    for rows in batches:
      mask = np.asarray(rows.loss_weights_bs) > 0
      assert not (np.asarray(rows.branches_bt) > 1).any()
      assert (np.asarray(rows.branches_bt) == 1).sum() == mask.sum()
      trained.append(np.asarray(rows.targets_bs)[mask])
    assert loss.algorithm is None
    return train_step(tx, state, batches, loss)

  monkeypatch.setattr(update, "train_step", spy)
  summary, rows = run()
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert rows[0]["loss"] == pytest.approx(np.log(VOCABULARY), abs=0.1)  # it knows nothing
  assert rows[3]["loss"] < rows[0]["loss"] - 0.1
  assert rows[3]["validation_loss"] < rows[1]["validation_loss"]
  ends = sum(int((targets == 5).sum()) for targets in trained)
  assert ends == 4 * 8  # token 5 is the end of the turn: one for each response
  assert set(summary["validation"]) == {"2", "4"} and "seconds_update" in rows[0]


def test_the_stop_rule(run, tmp_path, monkeypatch):
  """The run ends at the first validation that reaches stop_at, also at the step number where it is
  worst, and stays ended.
  """
  names = ("validation_exact", "validation_exact_worst")
  scores = iter([(0.1, 0.1), (0.5, 0.0), (0.5, 0.1), (0.9, 0.9)])
  monkeypatch.setattr(sft, "exact_shares", lambda run: dict(zip(names, next(scores), strict=True)))
  summary, rows = run(train__steps=20, train__stop_at=0.4)
  assert summary["steps"] == len(rows) == 6
  again, rows = run(train__steps=20, train__stop_at=0.4)
  assert again["steps"] == len(rows) == 6 and next(scores) == (0.9, 0.9)
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.steps()[-1] == 6
  checkpoints.close()
