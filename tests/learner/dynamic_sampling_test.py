"""Dynamic sampling: which groups are dropped and why, and how a batch is filled."""

import numpy as np
import pytest

from srl_jax.data.batches import PromptQueue
from srl_jax.data.examples import StepExample
from srl_jax.learner.dynamic_sampling import (
  NUMBERS,
  Batch,
  Group,
  add_round,
  draw_size,
  kept_share,
  surplus_tickets,
  why_dropped,
)
from srl_jax.rollout.engine import Prompt


def group(rewards, ticket=(0, 0), task="srl", failures=None):
  failures = failures or [None] * len(rewards)
  example = StepExample(f"p/{ticket[1]}", "p", task, "problem", [], None, "target", "1")
  numbers = np.zeros(len(rewards), NUMBERS)
  numbers["reward"] = rewards
  numbers["failure"] = [failure or "" for failure in failures]
  return Group(ticket, example, Prompt(example.id, (1,)), numbers)


@pytest.mark.parametrize(
  "given, epsilon, reason",
  [
    (dict(rewards=[0.5, 0.6]), 0.04, None),  # population std 0.05
    (dict(rewards=[0.5, 0.6]), 0.06, "low_std"),
    (dict(rewards=[0.0, 1.0]), 0.5, "low_std"),  # "exceeds" is strict
    (dict(rewards=[0.5, 0.5]), 0.0, "low_std"),
    (dict(rewards=[0.9] * 7), 0.0, "low_std"),  # numpy's is 1e-16
    (dict(rewards=[-1, -1], failures=["no_open", "cut_off"]), 0.01, "all_failed"),
    (dict(rewards=[-1, 0.9], failures=["no_open", None]), 0.01, None),
    (dict(rewards=[0, 0], failures=["no_open", None]), 0.01, "low_std"),
    (dict(rewards=[1, 1], task="rlvr"), 0.01, "all_right"),
    (dict(rewards=[0, 0], task="rlvr"), 0.01, "all_wrong"),
    (dict(rewards=[0, 0], task="rlvr", failures=["cut_off"] * 2), 0.01, "all_wrong"),
    (dict(rewards=[0] * 7 + [1], task="rlvr"), 0.01, None),
    (dict(rewards=[0.5, 0.5], task="one_step"), 0.01, "low_std"),
    (dict(rewards=[0.5, 0.5]), -1.0, None),  # dynamic sampling off: every group is kept
  ],
)
def test_reason_to_drop_by_hand(given, epsilon, reason):
  assert why_dropped(group(**given), epsilon) == reason


def fill(queue, teaches, *, size, max_rounds=10):
  """(batch, tickets of each round); a group teaches if `teaches(index)`."""
  batch, rounds = Batch(), []
  while drawn := draw_size(batch, size, queue.kept, max_rounds):
    rounds.append(queue.take(drawn))
    sampled = [group([0, 1] if teaches(i) else [1, 1], (epoch, i)) for epoch, i in rounds[-1]]
    batch = add_round(batch, sampled, size, std_epsilon=0.01)
  queue.put_back(surplus_tickets(batch))
  return batch, rounds


def in_order(count):
  """A queue with the first epoch in the order 0, 1, 2, ..."""
  return PromptQueue(count, 0, dict(epoch=0, position=count, head=[[0, i] for i in range(count)]))


def test_draw_size_needs_one_round_when_all_groups_are_kept():
  batch, rounds = fill(in_order(20), lambda i: True, size=4)
  assert [len(r) for r in rounds] == [4] and batch.rounds == 1
  assert [g.ticket[1] for g in batch.kept] == [0, 1, 2, 3]
  assert all(g.dropped is None for g in batch.groups)


def test_draw_size_follows_the_kept_share():
  """Even indices teach. 8 give 4; 4 more at a share of 1/2 need 8, and 5 for bad luck."""
  batch, rounds = fill(in_order(100), lambda i: i % 2 == 0, size=8)
  assert [len(r) for r in rounds] == [8, 13]
  assert [g.ticket[1] for g in batch.kept] == list(range(0, 16, 2))
  assert [g.dropped for g in batch.groups][:16] == [None, "low_std"] * 8


def test_surplus_tickets_return_to_the_head_in_order():
  queue = in_order(100)
  batch, _ = fill(queue, lambda i: i >= 7, size=8)
  assert [g.ticket[1] for g in batch.kept] == list(range(7, 15))
  surplus = [g.ticket[1] for g in batch.groups if g.dropped == "surplus"]
  assert surplus == list(range(15, 15 + len(surplus)))
  assert queue.take(len(surplus) + 1) == [(0, i) for i in range(15, 16 + len(surplus))]


@pytest.mark.parametrize("size", [16, 64, pytest.param(512, marks=pytest.mark.integration)])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 1.0])
def test_draw_size_needs_one_round_in_nine_of_ten_batches(size, share):
  """From the second batch on, with a surplus of at most 15 % of the prompts that are drawn."""
  rng = np.random.default_rng(size)
  queue, enough, surplus, drawn = PromptQueue(10**6, 0), 0, 0, 0
  for step in range(200):
    batch, _ = fill(queue, lambda i: rng.random() < share, size=size)
    queue.note_kept(kept_share(batch))
    assert len(batch.kept) == size
    if step:
      enough += batch.rounds == 1
      surplus += sum(g.dropped == "surplus" for g in batch.groups)
      drawn += len(batch.groups)
  assert enough >= 0.88 * 199  # 0.9, within two standard errors of 199 batches
  assert surplus <= 0.15 * drawn


def test_queue_state_has_the_kept_share():
  queue = in_order(100)
  fill(queue, lambda i: i % 2 == 0, size=8)
  queue.note_kept(0.5)
  again = PromptQueue(100, 0, queue.state())
  assert again.kept == 0.5
  again.note_kept(1.0)
  assert again.kept == pytest.approx(0.6)


def test_surplus_is_drawn_again_and_trained_once():
  queue, trained = in_order(24), []
  for _ in range(3):
    batch, _ = fill(queue, lambda i: i % 3 > 0, size=4)
    trained += [g.ticket for g in batch.kept]
  assert trained == [(0, i) for i in range(24) if i % 3][:12]


def test_draw_size_is_bounded_by_max_rounds():
  batch, rounds = fill(in_order(100), lambda i: i == 3, size=4, max_rounds=3)
  assert batch.rounds <= 3 and sum(map(len, rounds)) == 12
  assert [g.ticket[1] for g in batch.kept] == [3] and len(batch.groups) == 12
  nothing, _ = fill(in_order(100), lambda i: False, size=4, max_rounds=2)
  assert nothing.kept == [] and len(nothing.groups) == 8


def test_draw_size_wraps_into_the_next_epoch():
  """Three examples, one of them teaches: the batch of four takes it from four epochs."""
  queue = PromptQueue(3, 0)
  batch, _ = fill(queue, lambda i: i == 1, size=4)
  assert [g.ticket for g in batch.kept] == [(epoch, 1) for epoch in range(4)]
  assert len({g.ticket for g in batch.groups}) == len(batch.groups)
