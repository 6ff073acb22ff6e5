"""Lines about progress: a live line on a terminal, a plain line now and then elsewhere."""

import collections
import sys
import time

SECONDS = 10.0  # between two plain lines
LIVE_SECONDS = 0.1  # between two versions of a live line


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


class ProgressLine:
  """The line of a long command: how much is done of how many, the rate, the time left.

  As a context manager it leaves what is printed after it on a line of its own.

  Args:
    total: units of work, or None where it is not known.
    name: what a unit is, or what is worked on.
    unit: plural of the units for their rate, `12.5 rows/s`; "" shows no rate.
    quiet: print nothing.
    seconds: between two lines where the output is not a terminal; there is no line before them.
    file: where it prints; None: sys.stdout.
  """

  def __init__(
    self,
    total: int | None,
    *,
    name: str = "step",
    unit: str = "",
    quiet: bool = False,
    seconds: float = SECONDS,
    file=None,
  ):
    self.total, self.name, self.unit, self.quiet = total, name, unit, quiet
    self._pace, self._file = Pace(seconds), file or sys.stdout
    self._is_live = self._file.isatty()
    self._live_pace = Pace(LIVE_SECONDS)
    # (time, done) of the last calls: rate and time left follow from their pace alone, so that the
    # compilation in the first steps does not count.
    self._recent = collections.deque(maxlen=30)
    self._printed_once = set()
    self._is_open = False  # the live line has no end yet

  def __enter__(self) -> "ProgressLine":
    return self

  def __exit__(self, *_) -> None:
    self.end()

  def end(self) -> None:
    """Ends a live line whose work is done, or has been given up."""
    if self._is_open:
      print(flush=True, file=self._file)
    self._is_open = False

  def show(self, done: int, parts: dict[str, str] | None = None) -> None:
    """Shows that `done` units are done, and the parts, {name: value}."""
    now = time.monotonic()
    last = done == self.total
    due = self._live_pace.due() if self._is_live else self._pace.due()
    # A training's first and last step are shown at once; other commands may be over in no time.
    due = due or (not self.unit and (done <= 1 or last)) or (self._is_live and last)
    if due or not self._recent or now - self._recent[-1][0] >= LIVE_SECONDS:
      self._recent.append((now, done))
    if self.quiet or not due:
      return
    line = self._text(done, now, parts or {})
    if self._is_live:
      print("\r\033[K" + line, end="\n" if last else "", flush=True, file=self._file)
      self._is_open = not last
    else:
      print(line, flush=True, file=self._file)

  def _text(self, done: int, now: float, parts: dict[str, str]) -> str:
    line = f"{self.name} {done}" + ("" if self.total is None else f"/{self.total}")
    words = [f"{key} {value}" for key, value in parts.items()]
    first_time, first_done = self._recent[0]
    if done > first_done:
      rate = (done - first_done) / max(now - first_time, 1e-9)
      if self.unit:
        words.append(f"{rate:.3g} {self.unit}/s")
      if self.total is not None:
        words.append(f"left {clock((self.total - done) / rate)}")
    return "  ".join([line, *words])

  def say(self, message: str) -> None:
    """Prints a message on a line that stays."""
    if not self.quiet:
      print(("\r\033[K" if self._is_live else "") + message, flush=True, file=self._file)
      self._is_open = False

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
