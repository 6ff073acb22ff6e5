"""The line of long commands, on a terminal and elsewhere."""

import io

import pytest

from srl_jax import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A list whose only entry is the time."""
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


def lines_of(clock, file, total, **settings):
  """What a command of 40 units prints that makes two a second."""
  line = progress.ProgressLine(total, name="row", file=file, **settings)
  for done in range(1, 41):
    clock[0] += 0.5
    line.show(done)
  return file.getvalue()


def test_show_has_done_total_rate_and_time_left(clock):
  shown = lines_of(clock, Terminal(), 40, unit="rows").split("\r\033[K")
  assert "row 20/40  2 rows/s  left 0:10" in shown
  assert shown[-1] == "row 40/40  2 rows/s  left 0:00\n" and "\n" not in "".join(shown[:-1])


def test_show_prints_a_line_in_ten_seconds_where_there_is_no_terminal(clock):
  said = lines_of(clock, io.StringIO(), 400, unit="rows").splitlines()
  assert [line.split()[1] for line in said] == ["20/400", "40/400"]
  assert "\033" not in "".join(said)


def test_show_of_a_short_command_prints_nothing_where_there_is_no_terminal(clock):
  file = io.StringIO()
  line = progress.ProgressLine(3, unit="rows", file=file)
  for done in range(1, 4):
    line.show(done)
  assert file.getvalue() == ""


def test_show_without_a_total_has_no_time_left(clock):
  shown = lines_of(clock, Terminal(), None, unit="rows").split("\r\033[K")
  assert shown[-1] == "row 40  2 rows/s"


def test_line_ends_where_the_work_is_given_up(clock):
  file = Terminal()
  with progress.ProgressLine(40, name="row", unit="rows", file=file) as line:
    clock[0] += 1
    line.show(7)
  assert file.getvalue().endswith("row 7/40\n")


def test_show_of_a_training_begins_and_ends_with_a_line(clock):
  said = lines_of(clock, io.StringIO(), 40).splitlines()
  assert [line.split()[1].split("/")[0] for line in said] == ["1", "20", "40"]


def test_show_of_a_quiet_line_prints_nothing(clock):
  assert lines_of(clock, Terminal(), 40, quiet=True) == ""
