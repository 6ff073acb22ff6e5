"""Runs swebench in a separate environment: its grading, its docker harness, its reports."""

import contextlib
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from srl_jax.data import rows
from srl_jax.errors import UserError

SWEBENCH = "5.0.2"
# pip 26 and later know the upload time of a release.
_PACKAGES = (f"swebench=={SWEBENCH}", "pip==26.0.1")
_SCRIPT = pathlib.Path(__file__).with_name("in_environment.py")

Call = Callable[..., Any]


def environment(cache: pathlib.Path) -> pathlib.Path:
  """Returns the interpreter of swebench's environment in `cache`, made on first use (490 MB).

  Raises:
    UserError: it cannot be installed.
  """
  folder = cache.resolve() / f"swebench-{SWEBENCH}"
  python = folder / "bin" / "python"
  # `.done` is written last, so a partial installation is removed and made again.
  if not (folder / ".done").exists():
    print(f"making {folder} with swebench {SWEBENCH}, a minute or two ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    commands = [[sys.executable, "-m", "venv", str(folder)]]
    commands.append([str(python), "-m", "pip", "install", "-q", *_PACKAGES])
    for command in commands:
      done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
      if done.returncode:
        said = (done.stderr.strip() or "no message").split("\n")[-1][:300]
        raise UserError(f"{' '.join(command)} failed: {said}; the package index must be reachable")
    (folder / ".done").touch()
  return python


@contextlib.contextmanager
def harness(cache: pathlib.Path) -> Iterator[Call]:
  """Yields call(do, **request), which returns in_environment.py's answer; UserError for an error.

  It may be called from several threads; a lock serialises the calls.
  """
  # A separate process, as swebench's dependencies may conflict with ours.
  process = subprocess.Popen(
    [str(environment(cache)), str(_SCRIPT)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    encoding="utf-8",
  )

  lock = threading.Lock()

  def call(do: str, **request: Any) -> Any:
    with lock:
      process.stdin.write(json.dumps({"do": do, **request}) + "\n")
      process.stdin.flush()
      line = process.stdout.readline()
    if not line:
      raise UserError(f"swebench's environment exited during {do!r}: remove its folder in {cache}")
    answer = json.loads(line)
    if isinstance(answer, dict) and answer.keys() == {"error"}:
      raise UserError(f"{do}: {answer['error']}")
    return answer

  try:
    yield call
  finally:
    process.stdin.close()
    process.wait()


# ---------------------------------------------------------------------------------- docker


def judge_by_docker(
  data: str,
  predictions: pathlib.Path,
  folder: pathlib.Path,
  *,
  cache: pathlib.Path,
  workers: int,
  seconds: int,
  gold: bool,
) -> dict[str, dict]:
  """Runs the official harness, `swebench eval`, and returns its results; see `read_report`.

  The harness caches results by run id without comparing patches, so the run id contains a checksum
  of the predictions.

  Args:
    data: a dataset on the hub, the harness's short name, or a file of rows with image and
      eval_script.
    predictions: file; not read with `gold`.
    folder: for the harness's logs and report.
    cache: contains swebench's environment.
    workers: instances judged in parallel.
    seconds: time limit per instance.
    gold: judge the reference patches.

  Raises:
    UserError: the rows lack image or eval_script, no docker or podman service answers, or the
      harness fails.
  """
  check_rows(data)
  python = environment(cache)
  _check_service(cache)
  folder.mkdir(parents=True, exist_ok=True)
  run_id = "gold" if gold else f"run-{hashlib.sha256(predictions.read_bytes()).hexdigest()[:16]}"
  source = ["--gold"] if gold else ["--predictions", str(predictions.resolve())]
  swebench = str(python.with_name("swebench"))
  command = [swebench, "eval", _dataset(data), *source, "--run-id", run_id]
  command += ["--workers", str(workers), "--timeout", str(seconds), "--report-dir", "."]
  begun = time.time()
  # The harness writes logs/ and its report to the current folder.
  done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL)
  # Reports of earlier runs have the same name; only a new one counts. One second of tolerance is
  # for file systems with coarse times.
  reports = [path for path in folder.glob(f"*{run_id}*.json") if path.stat().st_mtime >= begun - 1]
  if done.returncode or not reports:
    raise UserError(f"{' '.join(command)} failed (code {done.returncode}); its logs: {folder}")
  found = read_report(max(reports, key=lambda path: path.stat().st_mtime))
  # The report has no counts of tests, but the reports of single instances have.
  for path in folder.glob(f"logs/run_evaluation/{run_id}/*/*/report.json"):
    _add_tests(found, json.loads(path.read_text(encoding="utf-8")))
  return found


def _check_service(cache: pathlib.Path) -> None:
  """Raises UserError unless docker, or podman at DOCKER_HOST, answers."""
  with harness(cache) as call:
    try:
      call("docker")
    except UserError as error:
      raise UserError(
        f"--by=docker: no docker service answers ({error}); start docker, or podman's service and"
        " set DOCKER_HOST=unix:///run/user/UID/podman/podman.sock, or use --by=sandbox"
      ) from error


def _dataset(data: str) -> str:
  """Returns --data in the harness's form: a path, its short name of Verified, or another name."""
  if pathlib.Path(data).is_file():
    return str(pathlib.Path(data).resolve())
  return "verified" if data.lower().endswith("swe-bench_verified") else data


def check_rows(data: str) -> None:
  """Raises UserError for a file with rows that swebench 5 cannot run."""
  if pathlib.Path(data).suffix not in (".jsonl", ".json"):
    return
  for place, row in rows.json_lines(data):
    lacking = [key for key in ("image", "eval_script") if not row.get(key)]
    if lacking:
      raise UserError(
        f"{place}: a classic row without {' and '.join(lacking)}, which swebench {SWEBENCH} needs:"
        " give --data=verified (the hub's rows have them since 2026), or --by=sandbox"
      )


def _add_tests(found: dict[str, dict], report: dict) -> None:
  """Adds the counts of passed tests from the harness's report of single instances."""
  for instance, about in report.items():
    if instance in found and "tests_status" in about:
      found[instance] |= counts(about)


# ---------------------------------------------------------------------------------- reports


def read_report(path: pathlib.Path) -> dict[str, dict]:
  """Returns the results in a report of the official harness or of sb-cli.

  Returns:
    {instance id: {resolved, reason}} of all ids in it. resolved is None after a failure of the
    infrastructure, and False after an error of a single instance, which the harness counts in the
    same way.

  Raises:
    UserError: the file is not such a report.
  """
  try:
    report = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is not a report of the official harness ({error})") from error
  if not isinstance(report, dict) or not isinstance(report.get("resolved_ids"), list):
    raise UserError(f"{path} is not a report of the official harness: no list resolved_ids")
  found: dict[str, dict] = {}
  # (key of the report, resolved, reason). The sets overlap; later ones override earlier ones.
  kinds = (
    ("submitted_ids", None, "incomplete"),
    ("completed_ids", False, "tests"),
    ("failed_ids", False, "tests"),  # only in reports of sb-cli, like pending_ids
    ("pending_ids", None, "incomplete"),
    ("unresolved_ids", False, "tests"),
    ("incomplete_ids", None, "incomplete"),
    ("error_ids", False, "error"),
    ("empty_patch_ids", False, "empty"),
    ("infra_failure_ids", None, "infrastructure"),
    ("resolved_ids", True, ""),
  )
  for key, resolved, reason in kinds:
    for instance in report.get(key) or []:
      found[instance] = {"resolved": resolved, "reason": reason}
  return found


def counts(about: dict) -> dict[str, str]:
  """Returns {f2p, p2p} as "passed/all", from the tests_status of an instance's report."""
  found = {}
  for name, key in (("f2p", "FAIL_TO_PASS"), ("p2p", "PASS_TO_PASS")):
    status = about["tests_status"][key]
    passed = len(status["success"])
    found[name] = f"{passed}/{passed + len(status['failure'])}"
  return found
