"""Stopping on a signal: it is remembered, and the run raises Stopped where it can save."""

import contextlib
import signal
from collections.abc import Iterator

from srl_jax import hosts
from srl_jax.errors import Stopped


class StopSignal:
  """Remembers SIGTERM and Ctrl-C, until `restore`. A second Ctrl-C ends the process at once.

  Fields: name, of the signal that came, or None; at_once, whether a signal raises Stopped where it
  comes. Only a process that is alone and has nothing to save may set that.
  """

  def __init__(self):
    self.name, self.at_once = None, False
    self._held = False
    self._before = {
      number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)
    }

  def _remember(self, number, frame):
    self.name = signal.Signals(number).name
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if self.at_once:
      raise Stopped(self.name)

  def raise_if_stopped(self) -> None:
    """Raises Stopped once a signal has come to this process."""
    if self.name and not self._held:
      raise Stopped(self.name)

  def raise_if_any_stopped(self) -> None:
    """Raises Stopped once a signal has come to any process; a collective of all processes."""
    if self._held:
      return
    # Only what was gathered counts: the others do not know of a signal that comes meanwhile.
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
