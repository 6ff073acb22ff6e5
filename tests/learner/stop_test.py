"""Stopping a run by signals."""

import os
import signal

import pytest

from srl_jax import hosts
from srl_jax.errors import Stopped
from srl_jax.learner.stop import StopSignal


@pytest.fixture
def stop():
  signals = StopSignal()
  yield signals
  signals.restore()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_is_reported_when_polled(number):
  before = signal.getsignal(number)
  stop = StopSignal()
  try:
    stop.raise_if_stopped()
    os.kill(os.getpid(), number)
    with pytest.raises(Stopped, match=number.name):
      stop.raise_if_stopped()
    with pytest.raises(Stopped, match=number.name):
      stop.raise_if_any_stopped()
  finally:
    stop.restore()
  assert signal.getsignal(number) == before


def test_stop_signal_is_raised_while_nothing_can_be_saved(stop):
  stop.at_once = True
  with pytest.raises(Stopped, match="SIGTERM"):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("it was only remembered")


def test_stop_signal_waits_while_it_is_held(stop):
  """A stop is delayed to the end of the block."""
  with stop.held():
    os.kill(os.getpid(), signal.SIGTERM)
    stop.raise_if_stopped()
    stop.raise_if_any_stopped()
  with pytest.raises(Stopped, match="SIGTERM"):
    stop.raise_if_any_stopped()


def test_stop_signal_during_a_barrier_counts_next_time(stop, monkeypatch):
  """The other processes do not know of it yet, so all continue; but it must not be lost."""

  def gather(name):
    os.kill(os.getpid(), signal.SIGTERM)
    return [name, None]

  with monkeypatch.context() as patched:
    patched.setattr(hosts, "all_gather_json", gather)
    stop.raise_if_any_stopped()
  with pytest.raises(Stopped, match="SIGTERM"):
    stop.raise_if_any_stopped()


def test_stop_signal_of_another_process_counts_here(stop, monkeypatch):
  monkeypatch.setattr(hosts, "all_gather_json", lambda name: [name, "SIGTERM"])
  with pytest.raises(Stopped, match="SIGTERM"):
    stop.raise_if_any_stopped()
  stop.raise_if_stopped()


def test_stop_signal_twice_ends_at_once(stop):
  os.kill(os.getpid(), signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)
    signal.sigtimedwait([], 0)
