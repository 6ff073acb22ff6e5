"""Sampling one batch ahead: nothing twice, nothing lost, whatever happens in between."""

import json
import threading

import pytest

from srl_jax.data.batches import PromptQueue
from srl_jax.data.sources import StepExample
from srl_jax.learner.dynamic_sampling import Batch, Group
from srl_jax.learner.overlap import Ahead, restore_batch
from srl_jax.rollout.engine import Prompt, Rollout
from srl_jax.tasks import Score

SIZE = 2


def group(ticket, rollouts, dropped=None):
  example = StepExample(f"e{ticket[1]}", "p", "srl", "problem", [], None, "target", "1")
  scores = [Score(rollout.sampler_logprobs[0], None, "", "") for rollout in rollouts]
  return Group(ticket, example, Prompt(example.id, (1,)), rollouts, scores, dropped)


class Sampler:
  """Draws SIZE prompts a step; `gate` holds it up, `error` makes it fail after the draw."""

  def __init__(self, queue):
    self.queue, self.gate, self.error, self.calls = queue, threading.Event(), None, []
    self.gate.set()

  def __call__(self, step):
    tickets = self.queue.take(SIZE)
    self.calls.append(step)
    assert self.gate.wait(10)
    if self.error:
      raise self.error
    groups = [
      group(ticket, [Rollout(f"e{ticket[1]}", (step, 7), (-0.1, -0.25), "stop", step, f"{step} 7")])
      for ticket in tickets
    ]
    return Batch(groups, groups, 1)


@pytest.fixture
def queue():
  return PromptQueue(10, 0)


def tickets(batch):
  return [group.ticket for group in batch.groups]


def test_a_batch_is_taken_as_it_was_begun(queue):
  order = PromptQueue(10, 0)
  ahead = Ahead(sample := Sampler(queue), queue)
  first = ahead.take(0)
  ahead.begin(1)
  assert ahead.pending
  second = ahead.take(1)
  assert not ahead.pending
  assert (tickets(first), tickets(second)) == (order.take(2), order.take(2))
  assert sample.calls == [0, 1]


def test_begin_returns_while_sampling_goes_on(queue):
  sample = Sampler(queue)
  ahead = Ahead(sample, queue)
  sample.gate.clear()
  ahead.begin(0)
  sample.gate.set()
  ahead.wait()
  assert tickets(ahead.take(0)) == PromptQueue(10, 0).take(2)


def test_a_checkpoint_holds_the_batch_that_was_not_trained_on(queue):
  ahead = Ahead(Sampler(queue), queue)
  ahead.take(0)
  ahead.begin(1)
  stored = json.loads(json.dumps(ahead.settle()))
  state = json.loads(json.dumps(queue.state()))
  alive = [ahead.take(1), ahead.take(2)]

  resumed = PromptQueue(10, 0)
  resumed.restore(state)
  decode = lambda token_ids: " ".join(map(str, token_ids))
  ready = stored["step"], restore_batch(stored, decode, group)
  again = Ahead(Sampler(resumed), resumed, ready)
  assert [again.take(1), again.take(2)] == alive


def test_dropped_groups_are_stored_as_such(queue):
  def sample(step):
    found = Sampler(queue)(step)
    dropped = group(found.groups[1].ticket, found.groups[1].rollouts, "low_std")
    return Batch(found.groups[:1], [found.groups[0], dropped], 3)

  ahead = Ahead(sample, queue)
  ahead.begin(4)
  stored = json.loads(json.dumps(ahead.settle()))
  batch = restore_batch(stored, lambda token_ids: " ".join(map(str, token_ids)), group)
  assert batch == ahead.take(4)
  assert [g.dropped for g in batch.groups] == [None, "low_std"]


@pytest.mark.parametrize("begun", [False, True])
def test_prompts_of_a_batch_that_failed_go_back(queue, begun):
  sample = Sampler(queue)
  ahead = Ahead(sample, queue)
  ahead.take(0)
  before = queue.state()
  sample.error = KeyError("stopped")
  if begun:
    ahead.begin(1)
  with pytest.raises(KeyError):
    ahead.take(1)
  assert ahead.settle() is None
  assert queue.state() == before
  sample.error = None
  order = PromptQueue(10, 0)
  order.restore(before)
  assert tickets(ahead.take(1)) == order.take(2)


def test_settling_twice_changes_nothing(queue):
  ahead = Ahead(Sampler(queue), queue)
  ahead.begin(0)
  assert ahead.settle() == ahead.settle()
  state = queue.state()
  ahead.take(0)
  assert ahead.settle() is None
  assert queue.state() == state
