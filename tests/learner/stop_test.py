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
def test_a_signal_raises_stopped_at_the_next_check(number):
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


def test_at_once_raises_stopped_in_the_handler(stop):
  stop.at_once = True
  with pytest.raises(Stopped, match="SIGTERM"):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("it was only remembered")


def test_held_delays_a_stop_to_the_end_of_the_block(stop):
  with stop.held():
    os.kill(os.getpid(), signal.SIGTERM)
    stop.raise_if_stopped()
    stop.raise_if_any_stopped()
  with pytest.raises(Stopped, match="SIGTERM"):
    stop.raise_if_any_stopped()


def test_a_signal_during_the_all_gather_stops_the_run_at_the_next_one(stop, monkeypatch):
  """The other processes do not know of it yet, so all continue; but it must not be lost."""

  def gather(name):
    os.kill(os.getpid(), signal.SIGTERM)
    return [name, None]

  with monkeypatch.context() as patched:
    patched.setattr(hosts, "all_gather_json", gather)
    stop.raise_if_any_stopped()
  with pytest.raises(Stopped, match="SIGTERM"):
    stop.raise_if_any_stopped()


def test_a_signal_to_another_process_stops_this_one(stop, monkeypatch):
  monkeypatch.setattr(hosts, "all_gather_json", lambda name: [name, "SIGTERM"])
  with pytest.raises(Stopped, match="SIGTERM"):
    stop.raise_if_any_stopped()
  stop.raise_if_stopped()


def test_a_second_interrupt_ends_at_once(stop):
  os.kill(os.getpid(), signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)
    signal.sigtimedwait([], 0)
