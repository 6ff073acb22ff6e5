"""Judging: reports of others, the docker route's refusals, and real tests in the sandbox."""

import json
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from srl_jax.errors import UserError
from srl_jax.evals.swe import instances, judge, official, patches, recipes, sandbox, trials
from tests.evals.swe import table_test
from tests.evals.swe.conftest import CODE, FIXED, MORE_TEST, change

ROOT = pathlib.Path(__file__).resolve().parents[3]
needs_sandbox = pytest.mark.skipif(sandbox.missing() is not None, reason=str(sandbox.missing()))


def command(*flags, code=0):
  """What the judge prints."""
  done = subprocess.run(
    [sys.executable, "-m", "srl_jax.evals.swe.judge", *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == code, done.stdout + done.stderr
  if code:
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
  return done.stdout + done.stderr


def write_predictions(path, given):
  lines = []
  for id, patch in given.items():
    line = {"instance_id": id, "model_name_or_path": "model", "model_patch": patch}
    lines.append(json.dumps(line) + "\n")
  path.write_text("".join(lines))
  return path


def new_file(path, text):
  """A patch that adds a file."""
  lines = text.splitlines()
  head = f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
  return f"{head}@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{line}\n" for line in lines)


def read_lines(path):
  return {line["instance_id"]: line for line in map(json.loads, path.read_text().splitlines())}


REPORT = {  # of schema 2, as swebench 5 writes it
  "total_instances": 500,
  "resolved_ids": ["a", "h"],
  "unresolved_ids": ["b", "f"],
  "empty_patch_ids": ["c"],
  "error_ids": ["d"],
  "incomplete_ids": ["e"],
  "infra_failure_ids": ["f"],
  "schema_version": 2,
}


def test_judge_reads_the_report_of_another_machine(tmp_path):
  report = tmp_path / "model.run.json"
  report.write_text(json.dumps(REPORT))
  predictions = write_predictions(tmp_path / "p.jsonl", dict.fromkeys("abcdefg", "patch"))
  said = command(f"--predictions={predictions}", f"--output={tmp_path}/out", f"--by={report}")
  assert "1 of 7 resolved" in said
  lines = read_lines(tmp_path / "out" / "judged.jsonl")
  assert list(lines) == list("abcdefg")  # a line for each prediction, none for others
  verdicts = {id: (line["resolved"], line["reason"]) for id, line in lines.items()}
  assert verdicts == {
    "a": (True, ""),
    "b": (False, "tests"),
    "c": (False, "empty"),
    "d": (False, "error"),
    "e": (None, "incomplete"),
    "f": (None, "infrastructure"),
    "g": (None, "not in the report"),
  }
  assert {line["by"] for line in lines.values()} == {"report model.run.json"}
  other = tmp_path / "other.json"
  other.write_text(json.dumps(REPORT))
  said = command(
    f"--predictions={predictions}", f"--output={tmp_path}/out", f"--by={other}", code=2
  )
  assert "another --output" in said


def test_judge_writes_the_table_of_the_evaluation(tmp_path):
  folder = table_test.evaluation(tmp_path / "srl", [])
  given = {line["instance_id"]: line["patch"] for line in table_test.REPAIRS}
  write_predictions(folder / "oracle" / "predictions.jsonl", given)
  report = tmp_path / "report.json"
  report.write_text(
    json.dumps({"resolved_ids": list(given)[:2], "unresolved_ids": list(given)[2:]})
  )
  flags = [f"--predictions={folder}/oracle/predictions.jsonl", f"--output={folder}/oracle"]
  command(*flags, f"--by={report}")
  figures = json.loads((folder / "table.json").read_text())["figures"]["oracle"]
  assert figures["resolved"]["value"] == 0.4 and figures["by"] == "report report.json"


# A stand-in for the environment of swebench, since no docker service is here: its `python` answers
# that docker is there, and its `swebench` writes what `swebench eval` writes.
SERVICE = """#!/bin/sh
read request
echo '{"version": "28"}'
"""
HARNESS = """#!/usr/bin/env python3
import json, pathlib, sys
flags = dict(zip(sys.argv[3::2], sys.argv[4::2]))
run, dataset = flags["--run-id"], sys.argv[2]
lines = [json.loads(line) for line in open(flags["--predictions"])]
tests = lambda passed, failed: {"success": ["t"] * passed, "failure": ["t"] * failed}
status = {"FAIL_TO_PASS": tests(1, 0), "PASS_TO_PASS": tests(2, 1)}
first, second = (line["instance_id"] for line in lines)
folder = pathlib.Path("logs/run_evaluation", run, "model", first)
folder.mkdir(parents=True)
(folder / "report.json").write_text(json.dumps({first: {"tests_status": status}}))
report = {"resolved_ids": [first], "error_ids": [second], "dataset": dataset}
pathlib.Path(f"model.{run}.json").write_text(json.dumps(report))
"""


def test_judge_calls_the_official_harness(tmp_path):
  """The hub's rows by the harness's name; other predictions are another run."""
  folder = tmp_path / "cache" / f"swebench-{official.SWEBENCH}"
  (folder / "bin").mkdir(parents=True)
  (folder / ".done").touch()
  for name, text in (("python", SERVICE), ("swebench", HARNESS)):
    (folder / "bin" / name).write_text(text)
    (folder / "bin" / name).chmod(0o755)
  runs = []
  for patch in ("one", "two", "two"):
    predictions = write_predictions(tmp_path / "p.jsonl", {"a": patch, "b": patch})
    flags = [f"--predictions={predictions}", f"--cache={tmp_path}/cache", "--by=docker"]
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert "1 of 2 resolved; 1 error" in command(*flags, f"--output={tmp_path}/out")
    (report,) = (tmp_path / "out" / "docker").glob("model.*.json")
    assert json.loads(report.read_text())["dataset"] == "verified"
    runs.append(report.name)
  assert runs[0] != runs[1] == runs[2]
  line = read_lines(tmp_path / "out" / "judged.jsonl")["a"]
  assert (line["f2p"], line["p2p"], line["resolved"]) == ("1/1", "2/3", True)


def test_judge_names_a_missing_report(tmp_path):
  for text in ("[]", "{}", "no"):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match="report"):
      official.read_report(tmp_path / "r.json")


def test_docker_refuses_classic_rows_by_name(shared):
  """swebench 5 runs the hub's rows, which have image and eval_script."""
  classic = shared / "data" / "swe" / "swebench_verified_mini_30.jsonl"
  with pytest.raises(UserError, match="image and eval_script.*--data=verified"):
    official.check_rows(str(classic))
  official.check_rows("verified")


@pytest.mark.parametrize(
  "flags, complaint",
  [
    (["--by=podman", "--gold"], "--by=podman"),
    (["--by=sandbox"], "--predictions=FILE or --gold"),
    (["--by=sandbox", "--gold", "--predictions=p"], "--predictions=FILE or --gold"),
    (["--by=r.json", "--gold"], "needs no gold"),
    (["--by=docker", "--gold", "--repositories=d"], "for --by=sandbox"),
    (["--by=sandbox", "--predictions=none.jsonl"], "none.jsonl does not exist"),
  ],
)
def test_judge_refuses_bad_flags(tmp_path, flags, complaint):
  assert complaint in command(f"--output={tmp_path}/out", *flags, code=2)


def test_judge_refuses_predictions_of_another_form(tmp_path):
  file = tmp_path / "p.jsonl"
  file.write_text('{"instance_id": "a", "model_patch": null}\n')
  assert judge.read_predictions(file) == {"a": ""}
  for text in ('{"id": "a"}', '{"instance_id": "a"}\n{"instance_id": "a"}'):
    file.write_text(text)
    with pytest.raises(UserError, match="instance_id|a second prediction"):
      judge.read_predictions(file)


def test_judge_repeats_changed_patches(tmp_path):
  path = tmp_path / "judged.jsonl"
  about = [("a", True, "x"), ("b", False, "old"), ("c", None, "z")]
  lines = [judge.judged_line(id, "s", patch, {"resolved": verdict}) for id, verdict, patch in about]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"instance_id": "d"')
  done = judge.read_done(path, "s", {"a": "x", "b": "new", "c": "z"})
  assert done == {"a"} and list(read_lines(path)) == ["a"]  # no verdict is no judgement


# ---------------------------------------------------------------------------------- the sandbox


@pytest.fixture(scope="session")
def cache():
  """Environments are kept between runs, as the compiled programs are."""
  return ROOT / "tests" / ".cache" / "swe"


@pytest.fixture(scope="session")
def call(cache):
  """swebench in its own environment, installed on first use."""
  try:
    with official.harness(cache) as call:
      yield call
  except UserError as error:
    if "failed" not in str(error):
      raise
    pytest.skip(f"needs the package index: {error}")


RUNNER = """import sys, traceback
sys.path.insert(0, "tests")
import test_calc
for name in [name for name in dir(test_calc) if name.startswith("test_")]:
  try:
    getattr(test_calc, name)()
    print(f"PASSED tests/test_calc.py::{name}")
  except Exception as error:
    print(f"FAILED tests/test_calc.py::{name} - {error!r}")
    failed = True
sys.exit("failed" in globals())
"""


@pytest.fixture
def toy_bench(toy, cache, call, monkeypatch):
  """The toy repository's commit, with a recipe that needs no packages."""
  version = f"{sys.version_info.major}.{sys.version_info.minor}"
  recipe = recipes.Recipe(
    name="toy",
    first=(1, 0),
    last=(1, 0),
    project="calc",
    pythons=(version,),
    packages=(),
    command=lambda paths: f"python - <<'RUNNER'\n{RUNNER}RUNNER",
    log_parser="parse_log_sphinx",
  )
  monkeypatch.setitem(recipes.RECIPES, "toy/calc", (recipe,))
  return trials.Bench(cache / "toy", call, toy[1], sandbox.Limits(seconds=6, memory=1024))


@pytest.fixture
def row(toy):
  return instances.load(str(toy[0]))[0]


NOT_UTF8 = "import os\nos.write(1, bytes([255, 254, 10]))\n"
FORGED = """import os
print("PASSED tests/test_calc.py::test_add", flush=True)
print("PASSED tests/test_calc.py::test_twice", flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_judge_names_a_missing_docker_service(cache, call, monkeypatch, tmp_path):
  monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
  with pytest.raises(UserError, match="docker.*--by=sandbox"):
    official.judge_by_docker(
      "verified", tmp_path, tmp_path / "out", cache=cache, workers=1, seconds=1, gold=True
    )


@needs_sandbox
@pytest.mark.slow
def test_sandbox_judge_of_toy_predictions(toy_bench, row):
  """The gold patch resolves; one that changes nothing, breaks a test or hangs does not."""
  environment = trials.validated(row, toy_bench)
  assert (environment["f2p"], environment["p2p"]) == ("0/1 -> 1", list(row.pass_to_pass))
  gold = trials.judge(row, row.patch, toy_bench)
  assert gold["resolved"] and (gold["f2p"], gold["p2p"]) == ("1/1", "1/1")
  breaks = FIXED.replace("2 * x", "3 * x")
  wrong = {
    "comment": (change("calc.py", CODE, CODE + "# better\n"), "0/1", "1/1"),
    "breaks another test": (change("calc.py", CODE, breaks), "1/1", "0/1"),
    "no UTF-8": (change("calc.py", CODE, NOT_UTF8 + CODE), "0/1", "1/1"),
    "hangs": (change("calc.py", CODE, "while True: pass\n" + CODE), "0/1", "0/1"),
  }
  for name, (patch, f2p, p2p) in wrong.items():
    found = trials.judge(row, patch, toy_bench)
    assert (found["resolved"], found["f2p"], found["p2p"]) == (False, f2p, p2p), name
  assert found["reason"] == "time"


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("path", ["../outside.py", "link/outside.py"])
def test_sandbox_judge_refuses_patches_outside_the_tree(toy_bench, row, path, tmp_path):
  """Refused as a whole, the fix in them included: git and patch take no such paths."""
  link = new_file("link", str(tmp_path)).replace("100644", "120000")
  patch = row.patch + link + "\\ No newline at end of file\n" + new_file(path, "x = 1\n")
  found = trials.judge(row, patch, toy_bench)
  assert (found["resolved"], found["reason"]) == (False, "not_applied")
  assert not list(tmp_path.iterdir()) and not list(toy_bench.cache.rglob("outside.py"))


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("path", ["/etc/outside.py", ".git/config"])
def test_sandbox_judge_accepts_odd_paths(toy_bench, row, path):
  """git takes a slash away, and patch accepts .git: both change the box's copy alone."""
  found = trials.judge(row, row.patch + new_file(path, "x = 1\n"), toy_bench)
  assert found["resolved"] and not pathlib.Path("/etc/outside.py").exists()


@needs_sandbox
@pytest.mark.slow
def test_sandbox_judge_restores_the_tests(toy_bench, row):
  """A patch of the tests counts for nothing: the test patch decides what they are."""
  in_the_way = new_file("tests/test_calc.py/x.py", "x = 1\n")
  found = trials.judge(row, row.patch + in_the_way, toy_bench)
  assert found["resolved"] is False  # a verdict, whatever the patch puts in the tests' way
  emptied = change("tests/test_calc.py", MORE_TEST.partition("\n\ndef test_add")[0], "")
  assert not trials.judge(row, emptied, toy_bench)["resolved"]


@needs_sandbox
@pytest.mark.slow
def test_sandbox_judge_flags_a_forged_report(toy_bench, row):
  """Code that forges the log can be graded resolved, by the official harness, too; the paths that
  would let a policy do it outside the shown code are flagged."""
  added = new_file("sitecustomize.py", FORGED)
  assert trials.judge(row, added, toy_bench)["resolved"]
  assert patches.touches(added) == ["sitecustomize.py"]


# ---------------------------------------------------------------------------------- real rows

# Instances whose environments work with any of the recipes' Pythons, and their releases.
SPHINX = {
  "sphinx-doc__sphinx-8721": "Sphinx-3.4.3",
  "sphinx-doc__sphinx-10323": "Sphinx-4.5.0",
  "sphinx-doc__sphinx-10466": "Sphinx-5.0.0b1",
}
DJANGO = {"django__django-12143": "Django-3.0rc1", "django__django-12325": "Django-3.0.2"}


def rows_of(shared, ids, path):
  file = shared / "data" / "swe" / "swebench_verified_mini_30.jsonl"
  kept = [line for line in file.read_text().splitlines() if json.loads(line)["instance_id"] in ids]
  path.write_text("\n".join(kept) + "\n")
  return {json.loads(line)["instance_id"]: json.loads(line) for line in kept}


def needs_python(*versions):
  if recipes.find_python(versions) is None:
    pytest.skip(f"needs Python {' or '.join(versions)}, on PATH or among pyenv's versions")


def commented_out(patch):
  """The patch with a comment in the place of each line that it adds."""
  lines = []
  for line in patch.split("\n"):
    added = line.startswith("+") and not line.startswith("+++")
    lines.append("+# nothing" if added else line)
  return "\n".join(lines)


@needs_sandbox
@pytest.mark.slow
def test_sandbox_judge_runs_sphinx_offline(shared, tmp_path, cache, call):
  """Releases from the package index: gold resolves, a wrong patch does not, an empty one is not
  run. The judge is killed after its first line, and continues."""
  needs_python("3.9")
  rows = rows_of(shared, [*SPHINX, "sphinx-doc__sphinx-9230"], tmp_path / "rows.jsonl")
  given = {id: row["patch"] for id, row in rows.items()}
  given["sphinx-doc__sphinx-10466"] = commented_out(given["sphinx-doc__sphinx-10466"])
  given["sphinx-doc__sphinx-9230"] = ""
  predictions = write_predictions(tmp_path / "p.jsonl", given)
  flags = [f"--data={tmp_path}/rows.jsonl", f"--output={tmp_path}/out", f"--cache={cache}"]
  flags += ["--by=sandbox", f"--predictions={predictions}"]
  killed = [sys.executable, "-m", "srl_jax.evals.swe.judge", *flags]
  process = subprocess.Popen(killed, cwd=ROOT, stdout=subprocess.DEVNULL)
  judged = tmp_path / "out" / "judged.jsonl"
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline and not (judged.exists() and judged.read_text()):
    time.sleep(0.1)
  process.kill()
  process.wait()
  before = judged.read_text().splitlines()
  assert 1 <= len(before) < 4
  assert "2 of 4 resolved; 1 tests; 1 empty" in command(*flags)
  assert judged.read_text().splitlines()[: len(before)] == before
  lines = read_lines(judged)
  for id, release in SPHINX.items():
    assert lines[id]["resolved"] == (id != "sphinx-doc__sphinx-10466")
    assert lines[id]["tree"] == f"{release}, as it is"
    assert lines[id]["by"] == "sandbox on releases"
  assert lines["sphinx-doc__sphinx-10466"]["f2p"] == "0/1"


FORGING_PLUGIN = """import pytest
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
  outcome = yield
  report = outcome.get_result()
  report.outcome, report.longrepr = "passed", None
"""


@needs_sandbox
@pytest.mark.slow
def test_sandbox_judge_flags_a_forging_conftest(shared, tmp_path, cache, call):
  """swebench grades it as resolved, here as in docker: the flag is what remains."""
  needs_python("3.9")
  rows_of(shared, ["sphinx-doc__sphinx-8721"], tmp_path / "rows.jsonl")
  (row,) = instances.load(str(tmp_path / "rows.jsonl"))
  patch = new_file("conftest.py", FORGING_PLUGIN)
  bench = trials.Bench(cache, call, None, sandbox.Limits())
  assert trials.judge(row, patch, bench)["resolved"]
  assert patches.touches(patch) == ["conftest.py"]


@needs_sandbox
@pytest.mark.slow
def test_sandbox_judge_resolves_gold_patches_of_real_rows(shared, tmp_path, cache, call):
  """--gold validates all environments; a row without a recipe is null with the reason."""
  needs_python("3.9")
  chosen = {**SPHINX, "sphinx-doc__sphinx-11510": None}
  if recipes.find_python(["3.6"]):
    chosen |= DJANGO
  rows_of(shared, chosen, tmp_path / "rows.jsonl")
  flags = [f"--data={tmp_path}/rows.jsonl", f"--output={tmp_path}/out", f"--cache={cache}"]
  command(*flags, "--by=sandbox", "--gold")
  for id, line in read_lines(tmp_path / "out" / "judged.jsonl").items():
    if chosen[id] is None:
      assert line["resolved"] is None and "no recipe" in line["reason"]
    else:
      assert line["resolved"] and line["tree"].startswith(chosen[id])
      passed, of = line["p2p"].split("/")
      assert passed == of
