"""The order in which examples are drawn, and the padded lengths that programs are compiled for."""

import random
from collections.abc import Sequence

from srl_jax.errors import UserError


def bucket(length: int) -> int:
  """Returns the padded length for `length` tokens: 32, 64, 96, ..., 256, 288, ..., 512, 576, ...

  Buckets are an eighth of a power of two apart, so little is padded and few shapes are compiled.
  From 1,024 tokens on they are multiples of 128, the block size of the attention kernels.
  """
  # `1 << (length - 1).bit_length()` rounds the length up to a power of two. A sixteenth of that is
  # an eighth of the power of two below.
  step = max(32, (1 << (length - 1).bit_length()) // 16)
  return -(-length // step) * step  # ceiling division: the next multiple of `step`


# Weight of the newest batch in the moving average PromptQueue.kept.
SMOOTHING = 0.2


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
  """Returns a permutation of range(count), a pure function of its arguments.

  A resumed run therefore visits the examples in the same order without storing it.
  """
  order = list(range(count))
  random.Random(f"{seed}/{epoch}").shuffle(order)
  return order


class PromptQueue:
  """An endless queue of tickets (epoch, index), with a new permutation of the examples each epoch.

  A ticket is drawn once; one that was not used can be put back in front. `state()` returns the
  whole state, a few small fields for the checkpoint.

  Args:
    count: number of examples.
    seed: of the permutations.
    state: a result of `state()`, or None to begin with epoch 0.

  Attributes:
    kept: moving average of the share of drawn prompts that dynamic sampling kept (`note_kept`);
      None before the first batch.

  Raises:
    UserError: `count` is 0, or the state refers to more than `count` examples.
  """

  def __init__(self, count: int, seed: int, state: dict | None = None):
    if count < 1:
      raise UserError("no examples to draw: give data with at least one example to train on")
    self.count, self.seed = count, seed
    self.kept = None
    self.restore(state or dict(epoch=0, position=0, head=[]))

  def take(self, n: int) -> list[tuple[int, int]]:
    """Removes and returns the next n tickets; n may exceed an epoch."""
    # Tickets that were put back go first, then the rest of this epoch, then further epochs.
    taken, self.head = self.head[:n], self.head[n:]
    while len(taken) < n:
      if self.position == self.count:
        self.restore(dict(epoch=self.epoch + 1, position=0, head=[], kept=self.kept))
      # The slice ends with the epoch, so it may be shorter than the n - len(taken) missing tickets.
      more = self._order[self.position : self.position + n - len(taken)]
      self.position += len(more)
      taken += [(self.epoch, index) for index in more]
    return taken

  def put_back(self, tickets: Sequence[tuple[int, int]]) -> None:
    """Puts tickets back at the front of the queue, in their order."""
    self.head = list(tickets) + self.head

  def note_kept(self, share: float) -> None:
    """Updates the moving average `kept` with the share of a batch's prompts that were kept."""
    self.kept = share if self.kept is None else self.kept + SMOOTHING * (share - self.kept)

  def epochs(self) -> float:
    """Returns the number of epochs drawn so far, as a fraction; tickets put back do not count."""
    return self.epoch + (self.position - len(self.head)) / self.count

  def state(self) -> dict:
    """Returns the state as JSON values, for `restore`."""
    head = list(map(list, self.head))
    return dict(epoch=self.epoch, position=self.position, head=head, kept=self.kept)

  def restore(self, state: dict) -> None:
    """Sets the state that `state` returned; raises UserError if it does not fit `count`."""
    self.epoch, self.position = state["epoch"], state["position"]
    self.head = list(map(tuple, state["head"]))
    self.kept = state.get("kept")  # checkpoints of version 0.2.0 do not have this key
    if self.position > self.count or any(index >= self.count for _, index in self.head):
      raise UserError(
        f"the checkpoint's prompt queue refers to more examples than the {self.count} in the data:"
        " give the data that the run started with, or another --workdir"
      )
    # The permutation is recomputed from (seed, epoch) and not stored in the checkpoint.
    self._order = epoch_order(self.count, self.seed, self.epoch)
