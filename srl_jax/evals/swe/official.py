"""swebench itself, in a separate environment: its grading, its docker harness, its reports."""

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
# pip from 26 on knows when a release was uploaded.
_PACKAGES = (f"swebench=={SWEBENCH}", "pip==26.0.1")
_SCRIPT = pathlib.Path(__file__).with_name("in_environment.py")

Call = Callable[..., Any]


def environment(cache: pathlib.Path) -> pathlib.Path:
  """Returns the interpreter of swebench's environment in `cache`, made on first use (490 MB).

  Raises UserError if it cannot be installed.
  """
  folder = cache.resolve() / f"swebench-{SWEBENCH}"
  python = folder / "bin" / "python"
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
  """Yields call(do, **request) -> the answer of in_environment.py; UserError for an error.

  Several threads may call it; they are answered one after another.
  """
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
      raise UserError(f"swebench's environment ended at {do!r}: remove its folder in {cache}")
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
  """Runs the official harness, `swebench eval`, and returns what it found; see `read_report`.

  Its results are kept by a run id with the checksum of the predictions: the harness takes up what
  it has under an id without a look at the patches.

  Args:
    data: name on the hub, the harness's short name, or a file whose rows have image and
      eval_script.
    predictions: file; not read with `gold`.
    folder: takes the harness's logs and report.
    workers: instances side by side.
    seconds: limit of each instance.
    gold: judge the reference patches.

  Raises UserError for a file of classic rows, and where no docker or podman service answers.
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
  done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL)
  reports = [path for path in folder.glob(f"*{run_id}*.json") if path.stat().st_mtime >= begun - 1]
  if done.returncode or not reports:
    raise UserError(f"{' '.join(command)} failed (code {done.returncode}); its logs: {folder}")
  found = read_report(max(reports, key=lambda path: path.stat().st_mtime))
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
  """--data as the harness takes it: a path, its short name of Verified, or another name."""
  if pathlib.Path(data).is_file():
    return str(pathlib.Path(data).resolve())
  return "verified" if data.lower().endswith("swe-bench_verified") else data


def check_rows(data: str) -> None:
  """Raises UserError for a file whose rows swebench 5 cannot run."""
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
  for instance, about in report.items():
    if instance in found and "tests_status" in about:
      found[instance] |= counts(about)


# ---------------------------------------------------------------------------------- reports


def read_report(path: pathlib.Path) -> dict[str, dict]:
  """Reads a report of the official harness or of sb-cli.

  Returns {instance id: {resolved, reason}} of all ids in it. Failures of the infrastructure are
  null; errors of a single instance count as not resolved, as the harness itself counts them.

  Raises UserError for anything else.
  """
  try:
    report = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: no report of the official harness ({error})") from error
  if not isinstance(report, dict) or not isinstance(report.get("resolved_ids"), list):
    raise UserError(f"{path}: no report of the official harness: it has no list resolved_ids")
  found: dict[str, dict] = {}
  kinds = (
    ("submitted_ids", None, "incomplete"),
    ("completed_ids", False, "tests"),
    ("failed_ids", False, "tests"),  # of sb-cli, as are pending_ids
    ("pending_ids", None, "incomplete"),
    ("unresolved_ids", False, "tests"),
    ("incomplete_ids", None, "incomplete"),
    ("error_ids", False, "error"),
    ("empty_patch_ids", False, "empty"),
    ("infra_failure_ids", None, "infrastructure"),
    ("resolved_ids", True, ""),
  )
  for key, resolved, reason in kinds:  # later ones count: the report's sets overlap
    for instance in report.get(key) or []:
      found[instance] = {"resolved": resolved, "reason": reason}
  return found


def counts(about: dict) -> dict[str, str]:
  """{f2p, p2p} as passed/all, from the tests_status of an instance's report."""
  found = {}
  for name, key in (("f2p", "FAIL_TO_PASS"), ("p2p", "PASS_TO_PASS")):
    status = about["tests_status"][key]
    passed = len(status["success"])
    found[name] = f"{passed}/{passed + len(status['failure'])}"
  return found
