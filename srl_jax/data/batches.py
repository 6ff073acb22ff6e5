"""The order of examples, and the lengths that programs are compiled for."""

import random
from collections.abc import Sequence

from srl_jax.errors import UserError


def bucket(length: int) -> int:
  """The compiled length for `length` tokens: 32, 64, 96, ..., 256, 288, ..., 512, 576, ...

  Steps are an eighth of the power of two below, so little is padded and few programs are compiled;
  from 1,024 on they are multiples of 128, as attention kernels want them.
  """
  # `1 << bit_length` is the smallest power of two that is at least the length: a sixteenth of it is
  # an eighth of the power below.
  step = max(32, (1 << (length - 1).bit_length()) // 16)
  return -(-length // step) * step  # rounded up to a multiple


SMOOTHING = 0.2  # weight of a batch in PromptQueue.kept


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
  """The order of `count` examples in an epoch, a pure function of its arguments."""
  order = list(range(count))
  random.Random(f"{seed}/{epoch}").shuffle(order)
  return order


class PromptQueue:
  """Tickets (epoch, index) of examples in order, epoch after epoch.

  A ticket is drawn once; one that was not used can be put back in front. The whole state is
  `state()`, a few small fields that go into a checkpoint.

  Attributes:
    kept: the share of drawn prompts that were worth training on, a running mean over the last
      batches (note_kept); None before the first one.

  Raises UserError without examples, or for a state that has tickets of other examples.
  """

  def __init__(self, count: int, seed: int, state: dict | None = None):
    if count < 1:
      raise UserError("no example to draw; give data with at least one example to train on")
    self.count, self.seed = count, seed
    self.kept = None
    self.restore(state or dict(epoch=0, position=0, head=[]))

  def take(self, n: int) -> list[tuple[int, int]]:
    """The next n tickets."""
    taken, self.head = self.head[:n], self.head[n:]
    while len(taken) < n:
      if self.position == self.count:
        self.restore(dict(epoch=self.epoch + 1, position=0, head=[], kept=self.kept))
      # What the epoch still has, at most as many as are missing.
      more = self._order[self.position : self.position + n - len(taken)]
      self.position += len(more)
      taken += [(self.epoch, index) for index in more]
    return taken

  def put_back(self, tickets: Sequence[tuple[int, int]]) -> None:
    """The next take begins with these."""
    self.head = list(tickets) + self.head

  def note_kept(self, share: float) -> None:
    """Takes a batch's share of prompts worth training on into the running mean."""
    self.kept = share if self.kept is None else self.kept + SMOOTHING * (share - self.kept)

  def epochs(self) -> float:
    """Epochs gone through so far."""
    return self.epoch + (self.position - len(self.head)) / self.count

  def state(self) -> dict:
    head = list(map(list, self.head))
    return dict(epoch=self.epoch, position=self.position, head=head, kept=self.kept)

  def restore(self, state: dict) -> None:
    self.epoch, self.position = state["epoch"], state["position"]
    self.head = list(map(tuple, state["head"]))
    self.kept = state.get("kept")  # 0.2.0 kept none
    if self.position > self.count or any(index >= self.count for _, index in self.head):
      raise UserError(
        f"the queue of the checkpoint is of more than the {self.count} examples that there are now:"
        " give the data that the run began with, or another --workdir"
      )
    self._order = epoch_order(self.count, self.seed, self.epoch)
