"""One batch ahead: batch k + 1 is sampled while batch k trains (rollout.lag = 1).

The engine's weights change only between two batches, so all rollouts of a batch have one version:
at lag 1 that of the step before. What was sampled and not trained on yet goes into the checkpoint,
so a run that is killed uses no sample twice and loses none.
"""

import dataclasses
import threading
from collections.abc import Callable

from srl_jax.data.batches import PromptQueue
from srl_jax.learner.dynamic_sampling import Batch, Group
from srl_jax.rollout.engine import Rollout


class Ahead:
  """Samples batches in order, each once, in a thread if asked to begin early.

  Args:
    sample: step -> its batch; takes from `queue`, and nobody else does.
    queue: where prompts are drawn from.
    ready: (step, batch) that a checkpoint held, or None.
  """

  def __init__(
    self,
    sample: Callable[[int], Batch],
    queue: PromptQueue,
    ready: tuple[int, Batch] | None = None,
  ):
    self._sample, self._queue = sample, queue
    self._before = None  # the queue's state before the batch that is not finished
    self._step, self._batch = ready or (None, None)
    self._error: BaseException | None = None
    self._thread: threading.Thread | None = None

  @property
  def pending(self) -> bool:
    """Whether a batch was begun and not taken."""
    return self._step is not None

  def begin(self, step: int) -> None:
    """Starts to sample the batch of `step`; returns at once."""
    self._before, self._step, self._batch = self._queue.state(), step, None
    self._thread = threading.Thread(target=self._run, args=(step,), daemon=True)
    self._thread.start()

  def _run(self, step: int) -> None:
    try:
      self._batch = self._sample(step)
      self._before = None
    except BaseException as error:  # raised again by `take`, in the run's own thread
      self._error = error

  def wait(self) -> None:
    """Returns when nothing is being sampled: the weights may change."""
    if self._thread:
      self._thread.join()
      self._thread = None

  def take(self, step: int) -> Batch:
    """The batch of `step`; raises what sampling it raised."""
    if self._step != step:
      self._before, self._step = self._queue.state(), step
      self._batch, self._before = self._sample(step), None
    self.wait()
    if self._error:
      error, self._error = self._error, None
      raise error
    batch, self._step, self._batch = self._batch, None, None
    return batch

  def settle(self) -> dict | None:
    """What a checkpoint holds of the next batch, when nothing will be sampled any more or `wait`ed.

    A finished batch as data for `restore_batch`; of one that is not finished the prompts go back to
    the queue and None comes back.
    """
    self.wait()
    if self._before is not None:
      self._queue.restore(self._before)
      self._before = self._step = self._error = None
    if self._batch is None:
      return None
    return {"step": self._step} | store_batch(self._batch)


def store_batch(batch: Batch) -> dict:
  """A batch as plain JSON; its texts, examples and scores follow from the rest."""
  return {
    "rounds": batch.rounds,
    "groups": [
      {
        "ticket": list(group.ticket),
        "dropped": group.dropped,
        "rollouts": [
          {k: v for k, v in dataclasses.asdict(rollout).items() if k != "text"}
          for rollout in group.rollouts
        ],
      }
      for group in batch.groups
    ],
  }


def restore_batch(
  stored: dict,
  decode: Callable[[list[int]], str],
  score: Callable[[tuple[int, int], list[Rollout]], Group],
) -> Batch:
  """The batch that `store_batch` stored.

  Args:
    decode: token ids -> text, as the engine does it.
    score: ticket, rollouts -> Group.
  """
  groups = []
  for entry in stored["groups"]:
    rollouts = [
      Rollout(
        **fields
        | dict(
          token_ids=tuple(fields["token_ids"]),
          sampler_logprobs=tuple(fields["sampler_logprobs"]),
          text=decode(fields["token_ids"]),
        )
      )
      for fields in entry["rollouts"]
    ]
    group = score(tuple(entry["ticket"]), rollouts)
    groups.append(dataclasses.replace(group, dropped=entry["dropped"]))
  return Batch([group for group in groups if group.dropped is None], groups, stored["rounds"])
