"""Progress output: a live line on a terminal, plain lines from time to time elsewhere."""

import collections
import sys
import time

SECONDS = 10.0  # between two plain lines


class Pace:
  """Limits plain lines to at most one every `seconds`."""

  def __init__(self, seconds: float = SECONDS):
    self.seconds, self._last = seconds, time.monotonic()

  def due(self) -> bool:
    """Returns whether `seconds` have passed since it last returned True."""
    now = time.monotonic()
    if now - self._last < self.seconds:
      return False
    self._last = now
    return True

  def say(self, text: str) -> None:
    """Prints the text if a line is due."""
    if self.due():
      print(text, flush=True)


class ProgressLine:
  """The progress line of a run of `total` steps, with the remaining time.

  Args:
    total: number of steps.
    quiet: print nothing (processes other than process 0).
    seconds: between two plain lines.
  """

  def __init__(self, total: int, *, quiet: bool = False, seconds: float = SECONDS):
    self.total, self.quiet, self._pace = total, quiet, Pace(seconds)
    self._is_live = sys.stdout.isatty()
    # (time, step) of the last 30 steps. The remaining time is computed from these alone, so that
    # the compilation in the first steps is soon left out.
    self._recent = collections.deque(maxlen=30)
    self._printed_once = set()

  def show(self, step: int, parts: dict[str, str]) -> None:
    """Shows step `step` of `total` and the parts, {name: value}."""
    now = time.monotonic()
    self._recent.append((now, step))
    # The first and the last step are always printed.
    due = self._pace.due() or step <= 1 or step == self.total
    if self.quiet or not (self._is_live or due):
      return
    line = f"step {step}/{self.total}  " + "  ".join(f"{k} {v}" for k, v in parts.items())
    first_time, first_step = self._recent[0]
    if step > first_step:
      line += f"  left {clock((self.total - step) * (now - first_time) / (step - first_step))}"
    if self._is_live:
      # "\r\033[K" returns to the start of the line and clears it.
      print("\r\033[K" + line, end="\n" if step == self.total else "", flush=True)
    else:
      print(line, flush=True)

  def say(self, message: str) -> None:
    """Prints a message on a line of the terminal that is not overwritten."""
    if not self.quiet:
      print(("\r\033[K" if self._is_live else "") + message, flush=True)

  def say_once(self, kind: str, message: str) -> None:
    """Prints the first message of each kind."""
    if kind not in self._printed_once:
      self._printed_once.add(kind)
      self.say(message)


def clock(seconds: float) -> str:
  """Returns seconds as 1:23:45 or 4:05."""
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
