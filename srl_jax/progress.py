"""Lines about progress: a live line on a terminal, a plain line now and then elsewhere."""

import collections
import sys
import time

SECONDS = 10.0  # between two plain lines


class Pace:
  """Says when the next plain line is due: at most one every `seconds`."""

  def __init__(self, seconds: float = SECONDS):
    self.seconds, self._last = seconds, time.monotonic()

  def due(self) -> bool:
    """Whether `seconds` have passed since it last returned True."""
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
  """The line of a run of `total` steps, with the time left; a quiet one prints nothing."""

  def __init__(self, total: int, *, quiet: bool = False, seconds: float = SECONDS):
    self.total, self.quiet, self._pace = total, quiet, Pace(seconds)
    self._is_live = sys.stdout.isatty()
    # (time, step) of the last steps: the time left follows from their pace alone, so that the
    # compilation in the first steps does not count.
    self._recent = collections.deque(maxlen=30)
    self._printed_once = set()

  def show(self, step: int, parts: dict[str, str]) -> None:
    """Shows step `step` of `total` and the parts, {name: value}."""
    now = time.monotonic()
    self._recent.append((now, step))
    due = self._pace.due() or step <= 1 or step == self.total
    if self.quiet or not (self._is_live or due):
      return
    line = f"step {step}/{self.total}  " + "  ".join(f"{k} {v}" for k, v in parts.items())
    first_time, first_step = self._recent[0]
    if step > first_step:
      line += f"  left {clock((self.total - step) * (now - first_time) / (step - first_step))}"
    if self._is_live:
      print("\r\033[K" + line, end="\n" if step == self.total else "", flush=True)
    else:
      print(line, flush=True)

  def say(self, message: str) -> None:
    """Prints a message on a line that stays."""
    if not self.quiet:
      print(("\r\033[K" if self._is_live else "") + message, flush=True)

  def say_once(self, kind: str, message: str) -> None:
    """As `say`, for the first message of its kind."""
    if kind not in self._printed_once:
      self._printed_once.add(kind)
      self.say(message)


def clock(seconds: float) -> str:
  """Seconds as 1:23:45 or 4:05."""
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
