"""Stopping when asked to: a signal becomes a question that a run answers where it can stop."""

import contextlib
import signal
from collections.abc import Iterator

from srl_jax import hosts
from srl_jax.errors import Stopped


class StopSignal:
  """Turns SIGTERM and Ctrl-C into a question, until `restore`.

  A second Ctrl-C ends the process at once.
  """

  def __init__(self):
    self.name = None
    self._held = False
    self._before = {
      number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
    }

  def _ask(self, number, frame):
    self.name = signal.Signals(number).name
    signal.signal(signal.SIGINT, signal.default_int_handler)

  def check(self) -> None:
    """Raises Stopped once a signal has come to this process."""
    if self.name and not self._held:
      raise Stopped(self.name)

  def agree(self) -> None:
    """As `check`, once a signal has come to any process; all must call it at the same place."""
    if not self._held:
      # Not by `check`: what comes while the others are waited for, they do not know of yet.
      asked = next(filter(None, hosts.all_gather_json(self.name)), None)
      if asked:
        raise Stopped(asked)

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """In here nothing is raised; the question waits."""
    self._held = True
    try:
      yield
    finally:
      self._held = False

  def restore(self) -> None:
    """Gives the signals back to whoever had them."""
    for number, handler in self._before.items():
      signal.signal(number, handler)
