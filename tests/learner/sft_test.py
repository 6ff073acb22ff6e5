"""Supervised runs: the examples of a step, the trained tokens, the stop rule."""

import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import miniature_base
from srl_jax import train
from srl_jax.data.arithmetic_tokenizer import CHAT_TEMPLATE
from srl_jax.data.responses import format_failure
from srl_jax.data.tokenizer import load_tokenizer, stop_ids
from srl_jax.learner import packing, sft, update
from srl_jax.learner.checkpoint import Checkpoints
from srl_jax.learner.shapes import expected_lengths
from srl_jax.policy.sharding import make_mesh
from srl_jax.rollout.engine import Rollout
from srl_jax.rollout.prompt_set import PromptSet
from srl_jax.tasks.examples import load_examples

MODEL = pathlib.Path(__file__).resolve().parents[2] / "configs" / "miniature"
VOCABULARY = json.loads((MODEL / "config.json").read_text())["vocab_size"]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_train_sft_has_every_example_once_an_epoch(count, size, seed):
  """The last batch of an epoch may be short; each epoch has another order."""
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


def test_train_sft_lowers_the_loss_and_logs_it(run, tmp_path, monkeypatch):
  """The trained tokens are the targets and their end tokens, none of the prompts."""
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
  start, *rows = rows  # the validation before step 1
  assert start["step"] == 0 and start["validation_loss"] > rows[3]["validation_loss"]
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert rows[0]["loss"] == pytest.approx(np.log(VOCABULARY), abs=0.1)  # random weights
  assert rows[3]["loss"] < rows[0]["loss"] - 0.1
  assert rows[3]["validation_loss"] < rows[1]["validation_loss"]
  ends = sum(int((targets == 5).sum()) for targets in trained)
  assert ends == 4 * 8  # token 5 is the end of the turn: one for each response
  assert set(summary["validation"]) == {"0", "2", "4"} and "seconds_update" in rows[0]


# DeepSeek-R1-Distill's and QwQ's templates end like this.
OPENING = CHAT_TEMPLATE + "{%- if add_generation_prompt -%}{{- '<think>\\n' -}}{%- endif -%}"


@pytest.fixture
def opened(tmp_path):
  """The fields that sft reads of a run, with a chat template that opens the think block."""
  shutil.copytree(MODEL, tmp_path / "model")
  settings = json.loads((MODEL / "tokenizer_config.json").read_text())
  settings["chat_template"] = OPENING
  (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
  config = miniature_base.get_config()
  config.data.path, config.data.holdout = "mix:16", 2
  examples = load_examples(config)
  tokenizer = load_tokenizer(tmp_path / "model")
  prompts = [PromptSet(config, tokenizer, part) for part in (examples.train, examples.validation)]
  lengths = expected_lengths(config, *prompts)
  return types.SimpleNamespace(
    config=config,
    tokenizer=tokenizer,
    stop_ids=stop_ids(tokenizer, tmp_path / "model"),
    row_shapes=packing.row_shapes(lengths, config.batch.tokens_per_device, "lines"),
    train_prompts=prompts[0],
    held_out=prompts[1],
  )


def test_train_sft_does_not_train_a_tag_of_the_template(opened):
  """A row holds each tag once; the trained tokens are a well-formed response to such a prompt."""
  single = [
    i for i, e in enumerate(opened.train_prompts.examples) if e.target.count("<think>") == 1
  ]
  assert single and opened.train_prompts.think_opened
  with jax.set_mesh(make_mesh("data=1")):
    for i in single:
      (rows,) = sft.pack_examples(opened, opened.train_prompts, [i], opened.row_shapes)
      ids = np.asarray(rows.targets_bs)[np.asarray(rows.loss_weights_bs) > 0]
      assert ids[-1] == opened.stop_ids[0]
      learnt = opened.tokenizer.decode(ids[:-1])
      assert format_failure(learnt, think_opened=True) is None
      row = np.asarray(rows.tokens_bt)[np.asarray(rows.segments_bt) > 0]
      assert opened.tokenizer.decode(row).count("<think>") == 1


def test_train_sft_leaves_a_tag_of_the_template_out_of_the_stop_rule(opened):
  """The longest response just fits, and repeated targets count as exact."""
  prompts = opened.train_prompts
  sizes = []
  for i in range(len(prompts.examples)):
    ids = opened.tokenizer(prompts.target(i), add_special_tokens=False)["input_ids"]
    sizes.append(len(prompts.prompt(i).token_ids) + len(ids) + 1)
  fits = lambda room: PromptSet(opened.config, opened.tokenizer, prompts.examples, room).too_long
  assert fits(max(sizes)) == 0 and fits(max(sizes) - 1) > 0

  def sample(batch, n, params):
    for i, prompt in enumerate(batch):
      yield [Rollout(prompt.id, (), (), "stop", 0, opened.held_out.target(i))]

  engine = types.SimpleNamespace(sample=sample)
  opened.solver = types.SimpleNamespace(engine=engine)
  assert sft.exact_shares(opened)["validation_exact"] == 1.0


def test_train_sft_stops_by_its_rule(run, tmp_path, monkeypatch):
  """The run ends at the first validation that reaches stop_at, also at the step number where it is
  worst, and stays ended.
  """
  names = ("validation_exact", "validation_exact_worst")
  # Of steps 0, 2, 4 and 6; the last pair is not needed.
  scores = iter([(0.1, 0.1), (0.1, 0.1), (0.5, 0.0), (0.5, 0.1), (0.9, 0.9)])
  monkeypatch.setattr(sft, "exact_shares", lambda run: dict(zip(names, next(scores), strict=True)))
  summary, rows = run(train__steps=20, train__stop_at=0.4)
  assert summary["steps"] == len(rows) - 1 == 6
  again, rows = run(train__steps=20, train__stop_at=0.4)
  assert again["steps"] == len(rows) - 1 == 6 and next(scores) == (0.9, 0.9)
  checkpoints = Checkpoints(tmp_path)
  assert checkpoints.steps()[-1] == 6
  checkpoints.close()
