"""Stopping on a signal: the handler remembers it, and the run raises Stopped where it can save."""

import contextlib
import signal
from collections.abc import Iterator

from srl_jax import hosts
from srl_jax.errors import Stopped


class StopSignal:
  """Remembers SIGTERM and Ctrl-C, until `restore`. A second Ctrl-C ends the process at once.

  Fields:
    name: of the signal that was received, or None.
    at_once: whether the handler itself raises Stopped; only for a single process with nothing to
      save.
  """

  def __init__(self):
    self.name, self.at_once = None, False
    self._held = False
    self._before = {
      number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)
    }

  def _remember(self, number, frame):
    self.name = signal.Signals(number).name
    # From now on Ctrl-C raises KeyboardInterrupt, for a user who does not want to wait for a save.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if self.at_once:
      raise Stopped(self.name)

  def raise_if_stopped(self) -> None:
    """Raises Stopped if this process has received a signal."""
    if self.name and not self._held:
      raise Stopped(self.name)

  def raise_if_any_stopped(self) -> None:
    """Raises Stopped if any process has received a signal; a collective of all processes."""
    if self._held:
      return
    # Decided by the gathered names alone, not by self.name: a signal during the all-gather is not
    # known to the other processes, which would continue without this one.
    names = [name for name in hosts.all_gather_json(self.name) if name]
    if names:
      raise Stopped(names[0])

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Delays a stop to the end of the block."""
    self._held = True
    try:
      yield
    finally:
      self._held = False

  def restore(self) -> None:
    """Restores the signal handlers from before."""
    for number, handler in self._before.items():
      signal.signal(number, handler)
