import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from srl_jax.rewards.workers import Workers

pytestmark = pytest.mark.integration  # real processes, which are killed
HERE = "tests.rewards.workers_test"


# What the children are asked to compute.


def square(x):
  return x * x


def own_pid(x):
  return os.getpid()


def end_process(x):
  os._exit(3)


def misbehave(how):
  if how == "spin in C":
    return 9**9**9
  if how == "sleep":
    time.sleep(60)
  if how == "memory":
    return len(bytearray(4 << 30))
  if how == "die":
    os.kill(os.getpid(), signal.SIGKILL)
  if how == "raise":
    raise KeyError("what is wrong")
  return how


def imported(name):
  return name in sys.modules


@pytest.fixture
def pool(request):
  function, count, limits = request.param
  workers = Workers(f"{HERE}:{function}", count, **limits)
  yield workers
  workers.close()


@pytest.mark.parametrize("pool", [("square", 2, {})], indirect=True)
def test_run_returns_results_in_the_order_of_the_jobs(pool):
  assert pool.run(range(50)) == [x * x for x in range(50)]
  assert pool.run([]) == []


@pytest.mark.parametrize("pool", [("own_pid", 2, {})], indirect=True)
def test_run_reuses_children_up_to_the_limit(pool):
  found = set(pool.run(range(10))) | set(pool.run(range(10)))
  assert 1 <= len(found) <= 2 and os.getpid() not in found


@pytest.mark.parametrize("pool", [("square", 4, {})], indirect=True)
def test_run_starts_one_child_for_one_job(pool):
  pool.run([3])
  assert len(pool._idle) == 1


@pytest.mark.parametrize(
  "pool", [("misbehave", 1, {"seconds": 0.5, "megabytes": 512})], indirect=True
)
@pytest.mark.parametrize("how", ["spin in C", "sleep", "memory", "die"])
def test_run_loses_a_child_to_a_bad_job_and_no_other_job(pool, how):
  start = time.monotonic()
  assert pool.run(["a", how, "b"]) == ["a", None, "b"]
  assert time.monotonic() - start < 15  # "sleep" uses no CPU: it ends at ten times the limit


@pytest.mark.parametrize("pool", [("misbehave", 2, {})], indirect=True)
def test_run_raises_a_childs_exception_and_goes_on(pool):
  with pytest.raises(RuntimeError, match="what is wrong"):
    pool.run(["a", "raise", "b"])
  assert pool.run(["c", "d"]) == ["c", "d"]


def test_run_raises_for_a_child_that_cannot_start():
  with pytest.raises(RuntimeError, match="no_such_module"):
    Workers("no_such_module:f", 1).run([1])


@pytest.mark.parametrize("pool", [("square", 2, {})], indirect=True)
def test_run_may_be_called_from_threads(pool):
  results = {}
  threads = [
    threading.Thread(target=lambda k=k: results.update({k: pool.run([k] * 20)})) for k in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == {k: [k * k] * 20 for k in range(4)}


@pytest.mark.parametrize("pool", [("imported", 1, {})], indirect=True)
def test_workers_do_not_import_jax(pool):
  import jax  # noqa: F401  (in the parent it is there)

  assert pool.run(["jax", "srl_jax"]) == [False, True]


SCRIPT = """
import sys
import time
import jax
from srl_jax.rewards.workers import Workers
pool = Workers("tests.rewards.workers_test:misbehave", 2, seconds=2)
print(pool.run(["a", "b", "c"]), flush=True)
print(*[child.process.pid for child in pool._idle], flush=True)
if "busy" in sys.argv:
  pool.run(["spin in C"] * 1000)
if "idle" in sys.argv:
  time.sleep(600)
"""


def run_parent(arguments, cwd):
  environment = os.environ | {"PYTHONPATH": str(cwd)}
  return subprocess.Popen(
    [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=cwd, env=environment
  )


@pytest.mark.parametrize("form", ["-c", "script"])
def test_workers_start_from_any_main_without_a_guard(form, tmp_path, pytestconfig):
  # A script without `if __name__ == "__main__"`, and one that is no file at all.
  (tmp_path / "main.py").write_text(SCRIPT)
  arguments = ["-c", SCRIPT] if form == "-c" else [str(tmp_path / "main.py")]
  parent = run_parent(arguments, pytestconfig.rootpath)
  output, _ = parent.communicate(timeout=60)
  assert parent.returncode == 0
  assert output.startswith("['a', 'b', 'c']\n")


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc, to see who is alive")
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_workers_end_when_their_parent_is_killed(state, pytestconfig):
  parent = run_parent(["-c", SCRIPT, state], pytestconfig.rootpath)
  assert parent.stdout.readline() == "['a', 'b', 'c']\n"
  pids = parent.stdout.readline().split()
  assert pids and all(map(alive, pids))
  time.sleep(0.5)  # busy: its children are deep in a power that would take a minute
  parent.kill()
  parent.wait()
  assert none_left(pids, seconds=30)


def alive(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


def none_left(pids, seconds):
  deadline = time.monotonic() + seconds
  while any(map(alive, pids)):
    if time.monotonic() > deadline:
      return False
    time.sleep(0.05)
  return True
