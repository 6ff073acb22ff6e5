"""The page that a run writes by itself: seldom, in another process, and never in the run's way."""

import json
import os
import pathlib
import subprocess
import sys
import time
import types

import pytest

from srl_jax import hosts
from srl_jax.learner import log as logs
from srl_jax.learner import page_process as pages
from tests.reporting.runs import group_line, metrics_line, write_run

pytestmark = pytest.mark.integration
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def workdir(tmp_path):
  return write_run(tmp_path / "run", {1: [group_line(["x", "y"])]})


def wait_until(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def open_log(workdir, report=True):
  settings = types.SimpleNamespace(report=report, tensorboard=False, wandb="")
  return logs.Log(workdir, settings, step=1, name="run", config={})


def test_a_run_writes_its_page_after_a_minute(workdir, monkeypatch):
  monkeypatch.setattr(pages, "SECONDS", 0.5)
  log, path = open_log(workdir), workdir / "report.html"
  log.step(2, metrics_line(2))
  assert not log.page.is_running()  # the first page is not due yet
  time.sleep(0.6)
  start = time.monotonic()
  log.step(3, metrics_line(3))
  assert time.monotonic() - start < 0.3  # the step does not wait for the page
  wait_until(path.exists)
  log.close()
  assert ",3]" in path.read_text("utf-8")


def test_pages_are_as_seldom_as_they_are_expensive(workdir, monkeypatch):
  monkeypatch.setattr(pages, "SECONDS", 0.0)
  page = pages.Page(workdir, True)
  page.write_if_due()
  wait_until(lambda: not page.is_running())
  written = (workdir / "report.html").stat().st_mtime_ns
  # A page takes at least 0.1 s of processor time, a hundred times of which is 10 s.
  end = time.monotonic() + 3
  while time.monotonic() < end:
    page.write_if_due()
    assert not page.is_running()
    time.sleep(0.1)
  assert (workdir / "report.html").stat().st_mtime_ns == written


def test_the_process_has_the_lowest_priority_and_ends_with_the_run(workdir, monkeypatch):
  monkeypatch.setattr(pages, "SECONDS", 0.0)
  own = lambda: set(map(int, pathlib.Path("/proc/thread-self/children").read_text().split()))
  before, page = own(), pages.Page(workdir, True)
  page.write_if_due()
  (started,) = own() - before
  assert os.getpriority(os.PRIO_PROCESS, started) == 19
  page.close()
  assert not page.is_running()
  with pytest.raises(ProcessLookupError):
    os.kill(started, 0)


def test_a_page_that_fails_is_one_line_of_warning(workdir, capsys, monkeypatch):
  monkeypatch.setattr(pages, "SECONDS", 0.0)
  monkeypatch.setattr(pages, "SHARE", 1e9)
  (workdir / "report.html").mkdir()
  log = open_log(workdir)
  for step in (2, 3):
    log.step(step, metrics_line(step))
    wait_until(lambda: not log.page.is_running())
  log.page.write_last()
  log.close()
  errors = capsys.readouterr().err
  assert errors.count("\n") == 1 and "report.html" in errors and "log.report=False" in errors
  assert [json.loads(line)["step"] for line in log.metrics.open()] == [1, 2, 3]


def test_a_python_that_cannot_be_started_is_one_line_too(workdir, capsys, monkeypatch):
  monkeypatch.setattr(sys, "executable", str(workdir / "no python"))
  page = pages.Page(workdir, True)
  page.write_last()
  assert capsys.readouterr().err.count("\n") == 1


def test_the_end_of_a_run_does_not_wait_forever(workdir, capsys, monkeypatch):
  monkeypatch.setattr(pages, "PATIENCE", 0.3)
  sleep = workdir / "python"
  sleep.write_text("#!/bin/sh\nexec sleep 60\n")
  sleep.chmod(0o755)
  monkeypatch.setattr(sys, "executable", str(sleep))
  start = time.monotonic()
  pages.Page(workdir, True).write_last()
  assert time.monotonic() - start < 10
  assert "not written within" in capsys.readouterr().err


def test_only_process_0_writes_a_page_and_only_if_it_is_on(workdir, monkeypatch):
  assert open_log(workdir).page.enabled and not open_log(workdir, report=False).page.enabled
  monkeypatch.setattr(hosts, "is_writer", lambda: False)
  log = open_log(workdir)
  assert not log.page.enabled
  log.page.write_last()
  assert not (workdir / "report.html").exists()


def test_the_page_is_written_from_any_folder(workdir, tmp_path):
  """A run's config may be in another folder than the package."""
  code = "import pathlib; from srl_jax.learner.page_process import Page;"
  code += f"Page(pathlib.Path('{workdir}'), True).write_last()"
  done = subprocess.run(
    [sys.executable, "-c", f"import sys; sys.path.insert(0, '{ROOT}'); {code}"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, "") and (workdir / "report.html").exists()
