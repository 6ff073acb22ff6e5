"""Order of examples, the queue of prompts, compiled lengths."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl_jax.data.batches import PromptQueue, bucket, epoch_order
from srl_jax.errors import UserError


@given(st.integers(1, 200), st.integers(0, 5), st.integers(0, 5))
def test_epoch_order_has_every_example_once(count, seed, epoch):
  assert sorted(epoch_order(count, seed, epoch)) == list(range(count))


def test_epoch_order_depends_on_seed_and_epoch_alone():
  """Golden: runs of other machines and Pythons must draw the same. Never change this."""
  assert epoch_order(8, seed=0, epoch=0) == [0, 2, 1, 4, 6, 7, 3, 5]
  assert epoch_order(8, 0, 0) == epoch_order(8, 0, 0)
  orders = [epoch_order(50, seed, epoch) for seed in range(3) for epoch in range(3)]
  assert len({tuple(order) for order in orders}) == 9


@given(st.integers(1, 20), st.lists(st.integers(0, 25), max_size=12))
def test_queue_take_continues_into_the_next_epoch(count, sizes):
  """Whatever is taken at a time, wrapping included: every example once an epoch, in its order."""
  queue, dealt = PromptQueue(count, 3), []
  for n in sizes:
    taken = queue.take(n)
    assert len(taken) == n
    dealt += taken
  epochs = -(-len(dealt) // count)
  expected = [(e, i) for e in range(epochs) for i in epoch_order(count, 3, e)]
  assert dealt == expected[: len(dealt)]
  assert queue.epochs() == pytest.approx(len(dealt) / count)


@given(
  st.integers(1, 9),
  st.lists(st.tuples(st.integers(1, 12), st.integers(0, 4)), max_size=8),
  st.integers(0, 8),
)
def test_queue_state_survives_json_at_any_point(count, moves, cut):
  """Each move takes n and puts back the last k of them; a copy made at `cut` goes on the same."""

  def play(queue, moves):
    dealt = []
    for n, k in moves:
      taken = queue.take(n)
      dealt.append(taken)
      queue.put_back(taken[len(taken) - min(k, n) :])
    return dealt

  whole, first = PromptQueue(count, 1), PromptQueue(count, 1)
  expected = play(whole, moves)
  begun = play(first, moves[:cut])
  second = PromptQueue(count, 1)
  second.restore(json.loads(json.dumps(first.state())))
  assert begun + play(second, moves[cut:]) == expected
  assert second.state() == whole.state()


def test_queue_take_returns_what_was_put_back_first():
  queue = PromptQueue(6, 0)
  first = queue.take(4)
  queue.put_back(first[1:3])
  assert queue.epochs() == pytest.approx(2 / 6)
  assert queue.take(3) == [*first[1:3], (0, epoch_order(6, 0, 0)[4])]


def test_bucket_rounds_up_with_bounded_padding():
  for n in range(1, 9000):
    assert n <= bucket(n) < n * 1.125 + 32 and bucket(n) % (128 if n > 1024 else 32) == 0
    assert bucket(bucket(n)) == bucket(n) <= bucket(n + 1)
  assert len({bucket(n) for n in range(1, 8193)}) <= 50  # programs to compile


@pytest.mark.parametrize(
  "count, state",
  [
    (0, None),
    (3, dict(epoch=0, position=4, head=[])),  # of a data set that has shrunk
    (3, dict(epoch=1, position=1, head=[[0, 3]])),
  ],
)
def test_queue_refuses_the_state_of_other_examples(count, state):
  with pytest.raises(UserError):
    PromptQueue(count, 0, state)
