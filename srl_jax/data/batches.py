"""Which example comes next, and the lengths that programs are compiled for."""

import random
from collections.abc import Sequence


def bucket(length: int, smallest: int = 32) -> int:
  """The compiled length for `length` tokens: 32, 48, 64, 96, 128, 192, ...: few programs a run."""
  size = smallest
  while size < length:
    size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
  return size


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
  """The order of `count` examples in an epoch, a pure function of its arguments."""
  order = list(range(count))
  random.Random(f"{seed}/{epoch}").shuffle(order)
  return order


class PromptQueue:
  """Examples in order, epoch after epoch; what was taken in vain can be put back in front.

  Its whole state is `state()`: three small fields that go into a checkpoint.
  """

  def __init__(self, count: int, seed: int):
    self.count, self.seed = count, seed
    self.epoch = self.position = 0
    self.head: list[int] = []  # put back, to be taken first
    self._order = epoch_order(count, seed, 0)

  def take(self, n: int) -> list[int]:
    """Indices of the next n examples."""
    taken, self.head = self.head[:n], self.head[n:]
    while len(taken) < n:
      if self.position == self.count:
        self.epoch, self.position = self.epoch + 1, 0
        self._order = epoch_order(self.count, self.seed, self.epoch)
      more = self._order[self.position : self.position + n - len(taken)]
      self.position += len(more)
      taken += more
    return taken

  def put_back(self, indices: Sequence[int]) -> None:
    """The next take begins with these."""
    self.head = list(indices) + self.head

  def epochs_begun(self) -> float:
    """Epochs gone through so far, as a fraction."""
    return self.epoch + (self.position - len(self.head)) / self.count

  def state(self) -> dict:
    return dict(epoch=self.epoch, position=self.position, head=list(self.head))

  def restore(self, state: dict) -> None:
    self.epoch, self.position, self.head = state["epoch"], state["position"], list(state["head"])
    self._order = epoch_order(self.count, self.seed, self.epoch)
