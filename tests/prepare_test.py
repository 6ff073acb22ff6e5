"""The command that turns solutions into step examples: files, table, errors, nothing half-done."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from srl_jax import prepare
from srl_jax.data.sources import Examples, StepExample, load_examples

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIELDS = "--fields=problem=q,solution=s,answer=a"


def run(folder, *flags):
  return subprocess.run(
    [sys.executable, "-m", "srl_jax.prepare", *flags],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture
def rows(tmp_path):
  solution = "1. **A**: aa\n2. **B**: bb\n3. **C**: ccc"
  rows = [{"q": f"Question {k}?", "s": solution, "a": str(k)} for k in range(10)]
  rows.append({"q": "Another?", "s": "No steps é.", "a": ""})
  (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
  return tmp_path


def config(**changes):
  settings = {"source": "jsonl", "path": "", "title_hint": False, "keep_last_step": False}
  return ml_collections.ConfigDict({**settings, "holdout": 4, **changes})


def test_prepare_writes_what_a_config_would_make(rows):
  result = run(rows, "--source=rows.jsonl", "--output=new/out", FIELDS, "--holdout=4", "--seed=3")
  assert (result.returncode, result.stderr) == (0, "")
  assert result.stdout.splitlines() == [
    "rows read                        11",
    "rows kept                        10",
    "  dropped: no_steps              1",
    "steps per solution p10/p50/p90   3/3/3",
    "characters per step p10/p50/p90  12/12/13",
    "train                            12 examples of 6 problems",
    "validation                       8 examples of 4 problems",
    "wrote new/out/train.jsonl, validation.jsonl and summary.json",
  ]
  prepared = load_examples(config(path=str(rows / "new" / "out")), method="srl", seed=0)
  fields = {"problem": "q", "solution": "s", "answer": "a", "id": ""}
  source = config(path=str(rows / "rows.jsonl"), fields=fields)
  assert prepared == load_examples(source, method="srl", seed=3)
  summary = json.loads((rows / "new" / "out" / "summary.json").read_text("utf-8"))
  assert summary["train"] == {"examples": 12, "problems": 6}
  assert summary["counts"] == {"rows": 11, "no_steps": 1, "kept": 10}


def test_a_config_that_asks_for_something_else_is_refused(rows):
  assert run(rows, "--source=rows.jsonl", "--output=out", FIELDS, "--holdout=4").returncode == 0
  folder = str(rows / "out")
  for changes, message in (
    ({"title_hint": True}, "prepared with title_hint=False, the config has True"),
    ({"holdout": 5}, "prepared with holdout=4, the config has 5"),
  ):
    with pytest.raises(ValueError, match=message):
      load_examples(config(path=folder, **changes), method="srl", seed=0)
  with pytest.raises(ValueError, match="method='srl', the config has 'rlvr'"):
    load_examples(config(path=folder), method="rlvr", seed=0)
  (rows / "out" / "summary.json").unlink()
  with pytest.raises(ValueError, match="has no readable summary.json"):
    load_examples(config(path=folder), method="srl", seed=0)


def test_nothing_held_out_and_other_methods(rows):
  flags = ("--source=rows.jsonl", "--output=out", FIELDS, "--holdout=0", "--method=rlvr")
  result = run(rows, *flags)
  assert result.stdout.splitlines()[:3] == [
    "rows read             11",
    "rows kept             10",
    "  dropped: no_answer  1",
  ]
  assert "steps" not in result.stdout
  prepared = load_examples(config(path=str(rows / "out"), holdout=0), method="rlvr", seed=0)
  assert (len(prepared.train), prepared.validation) == (10, [])


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--source=gone.jsonl"], "error: gone.jsonl does not exist"),
    (["--source=rows.jsonl"], "error: rows.jsonl:1: no field 'question', which data.fields.prob"),
    (["--source=rows.jsonl", FIELDS], "error: data.holdout=60: "),
    (["--source=rows.jsonl", "--fields=problm=q"], "error: --fields: 'problm=q' is none of"),
    (["--source=rows.jsonl", "--outputs=x"], "error: Unknown command line flag 'outputs'"),
    (["--source=broken.jsonl", FIELDS], "error: broken.jsonl:2: broken JSON: "),
    ([], "error: flag --source=None"),
  ],
)
def test_bad_input_is_one_line_and_leaves_nothing(rows, flags, message):
  (rows / "broken.jsonl").write_text('{"q": "Q?", "s": "1. a\\n2. b", "a": "1"}\n{"q": \n')
  before = sorted(os.listdir(rows))
  result = run(rows, "--output=out", *flags)
  assert result.returncode == 2
  assert result.stderr.startswith(message) and result.stderr.count("\n") == 1
  assert sorted(os.listdir(rows)) == before


def test_a_failed_write_leaves_the_old_files(tmp_path):
  good = StepExample("p/1", "p", "srl", "Q?", [], None, "t", None)
  prepare._write(tmp_path / "out", Examples([good], [], {}), {"a": 1}, [])
  before = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
  bad = dataclasses.replace(good, answer=object())
  with pytest.raises(TypeError):
    prepare._write(tmp_path / "out", Examples([good, good], [bad], {}), {"a": 2}, [])
  assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == before
  assert os.listdir(tmp_path) == ["out"]
