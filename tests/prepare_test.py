"""The command that turns solutions into step examples: files, table, errors, nothing half-done."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import ml_collections
import pytest

from srl_jax import folders, prepare
from srl_jax.data import sources
from srl_jax.data.data_config import DataConfig
from srl_jax.data.sources import Examples, StepExample
from srl_jax.errors import UserError
from srl_jax.policy import hf_files, model, weights
from srl_jax.tasks.examples import example_kind

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


def load_examples(data, *, method, seed):
  """The examples of a config's group `data` for a method."""
  kind = example_kind(method, data.get("domain", "math"))
  return sources.load_examples(DataConfig.from_group(data), kind, seed=seed)


def read(path):
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


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


def test_load_examples_refuses_a_folder_prepared_otherwise(rows):
  assert run(rows, "--source=rows.jsonl", "--output=out", FIELDS, "--holdout=4").returncode == 0
  folder = str(rows / "out")
  for changes, message in (
    ({"title_hint": True}, "prepared with title_hint=False, the config has True"),
    ({"holdout": 5}, "prepared with holdout=4, the config has 5"),
  ):
    with pytest.raises(ValueError, match=message):
      load_examples(config(path=folder, **changes), method="srl", seed=0)
  with pytest.raises(ValueError, match="method='srl'.*'rlvr'"):
    load_examples(config(path=folder), method="rlvr", seed=0)
  (rows / "out" / "summary.json").unlink()
  with pytest.raises(ValueError, match="summary.json"):
    load_examples(config(path=folder), method="srl", seed=0)


def test_prepare_without_held_out_problems_and_for_other_methods(rows):
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
def test_prepare_refuses_bad_input_and_leaves_nothing(rows, flags, message):
  (rows / "broken.jsonl").write_text('{"q": "Q?", "s": "1. a\\n2. b", "a": "1"}\n{"q": \n')
  before = sorted(os.listdir(rows))
  result = run(rows, "--output=out", *flags)
  assert result.returncode == 2
  assert result.stderr.startswith(message) and result.stderr.count("\n") == 1
  assert sorted(os.listdir(rows)) == before


def test_prepare_that_fails_leaves_the_old_files(tmp_path):
  good = StepExample("p/1", "p", "srl", "Q?", [], None, "t", None)
  prepare._write(tmp_path / "out", Examples([good], [], {}), {"a": 1}, [])
  before = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
  bad = dataclasses.replace(good, answer=object())
  with pytest.raises(TypeError):
    prepare._write(tmp_path / "out", Examples([good, good], [bad], {}), {"a": 2}, [])
  assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == before
  assert os.listdir(tmp_path) == ["out"]


KILLED = """
import os, pathlib, signal, sys
from srl_jax import folders, prepare
from srl_jax.data.sources import Examples, StepExample
moved, replace = [], os.replace
def killed(source, target):
  if len(moved) == int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
  moved.append(target)
  replace(source, target)
os.replace = killed
example = lambda id: StepExample(f"{id}/1", id, "srl", "New?", [], None, "t", None)
settings = {"method": "srl", "title_hint": False, "keep_last_step": False, "holdout": 4}
summary = {"settings": settings | {"domain": "math"}, "counts": {}}
prepare._write(pathlib.Path("out"), Examples([example("n")], [example("v")], {}), summary, [])
"""


@pytest.mark.parametrize("moved", range(3))
def test_prepare_that_is_killed_leaves_nothing_that_is_read(rows, moved):
  """Killed before each move of a file: a config reads no mixture, and a second try is whole."""
  flags = ["--source=rows.jsonl", "--output=out", FIELDS, "--holdout=4"]
  assert run(rows, *flags).returncode == 0
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", KILLED, str(moved)]
  killed = subprocess.run(command, cwd=rows, env=environment, check=False)
  assert killed.returncode == -signal.SIGKILL
  with pytest.raises(UserError, match="summary.json"):
    load_examples(config(path=str(rows / "out")), method="srl", seed=0)
  assert run(rows, *flags).returncode == 0
  examples = load_examples(config(path=str(rows / "out")), method="srl", seed=0)
  assert {e.problem for e in examples.train} < {f"Question {k}?" for k in range(10)}
  names = {path.name for path in (rows / "out").iterdir() if not path.name.startswith(".lock")}
  assert names == {"train.jsonl", "validation.jsonl", "summary.json"}


def test_prepare_refuses_a_folder_in_use(rows):
  flags = ["--source=rows.jsonl", "--output=out", FIELDS, "--holdout=4"]
  with folders.locked(rows / "out"):
    for more in ([], ["--hard", "--model=gone/model"]):
      result = run(rows, *flags, *more)
      assert result.returncode == 2 and f"process {os.getpid()} on " in result.stderr
  assert not (rows / "out" / "train.jsonl").exists() and not (rows / "out" / "hard").exists()


# ---------------------------------------------------------------------------------- runs


def test_prepare_of_trajectories(tmp_path):
  call = "<function=bash>\n<parameter=command>{}</parameter>\n</function>"
  rows = []
  for k in range(4):
    messages = [{"role": "user", "content": f"Issue {k}."}]
    for command in ("ls", "pwd", "make"):
      messages.append({"role": "assistant", "content": "Now.\n\n" + call.format(command)})
      messages.append({"role": "user", "content": "OBSERVATION:\n" + "x" * 100})
    rows.append({"messages": json.dumps(messages), "resolved": k != 3, "model": "m"})
  (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  flags = ["--source=runs.jsonl", "--output=out", "--domain=swe", "--fields=solution=messages"]
  flags += ["--expert=m", "--holdout=1", "--validation_steps=1"]
  result = run(tmp_path, *flags)
  assert (result.returncode, result.stderr) == (0, "")
  assert result.stdout.splitlines() == [
    "rows read                               4",
    "rows kept                               3",
    "  dropped: not_resolved                 1",
    "steps per run p10/p50/p90               3/3/3",
    "characters per thought p10/p50/p90      4/4/4",
    "characters per action p10/p50/p90       61/62/63",
    "characters per observation p10/p50/p90  100/100/100",
    "train                                   4 examples of 2 problems",
    "validation                              1 examples of 1 problems",
    "wrote out/train.jsonl, validation.jsonl and summary.json",
  ]
  swe = {"expert": "m", "resolved": True, "runs": 5000, "pairs": 2}
  swe |= {"validation_steps": 1}
  data = config(path=str(tmp_path / "out"), holdout=1, domain="swe", swe=swe)
  prepared = load_examples(data, method="srl", seed=0)
  source = data.copy_and_resolve_references().unlock()
  source.path, source.fields = str(tmp_path / "runs.jsonl"), {"solution": "messages", "id": ""}
  assert prepared == load_examples(source, method="srl", seed=0)
  data.swe.pairs = 1
  with pytest.raises(ValueError, match="was prepared with swe="):
    load_examples(data, method="srl", seed=0)
  with pytest.raises(ValueError, match="domain='swe'.*'math'"):
    load_examples(config(path=str(tmp_path / "out"), holdout=1), method="srl", seed=0)


# ---------------------------------------------------------------------------------- hard problems


@pytest.fixture(scope="module")
def guesser(tmp_path_factory):
  """A folder with a model of random weights: in two tokens it hits upon one digit now and then."""
  folder, miniature = tmp_path_factory.mktemp("models") / "guesser", ROOT / "configs" / "miniature"
  shape = hf_files.load_config(miniature)
  weights.save_hf(shape, model.init(shape, 0), folder, source=miniature)
  return folder


def test_prepare_hard_keeps_problems_that_the_model_hardly_solves(guesser, tmp_path):
  solution = "1. **A**: aa\n2. **B**: bb\n3. **C**: ccc"
  rows = [{"q": f"{k} + {k}", "s": solution, "a": str(k), "i": f"p{k}"} for k in range(10)]
  rows += [{"q": "7 * 7", "s": solution, "a": "49000", "i": "never"}]
  rows += [{"q": "1 - 1", "s": solution, "a": "", "i": "unknown"}]
  (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  flags = ["--source=rows.jsonl", "--output=out", "--fields=problem=q,solution=s,answer=a,id=i"]
  flags += ["--holdout=0", "--hard", f"--model={guesser}", "--max_tokens=2"]
  result = run(tmp_path, *flags, "--samples=16", "--max_success_rate=0.05")
  assert (result.returncode, result.stderr) == (0, "")
  assert result.stdout.splitlines()[-1] == (
    "wrote out/train.jsonl, validation.jsonl, hard.jsonl and summary.json"
  )
  told = {row["id"]: row for row in read(tmp_path / "out" / "hard.jsonl")}
  sampled = read(tmp_path / "out" / "hard" / "sampled-16.jsonl")
  rates = {row["id"]: sum(s["right"] for s in row["samples"]) / 16 for row in sampled}
  assert {id: row["success_rate"] for id, row in told.items()} == rates | {"unknown": None}
  reasons = {id: "hard" if rate <= 0.05 else "too_easy" for id, rate in rates.items()}
  assert {id: row["reason"] for id, row in told.items()} == reasons | {"unknown": "no_answer"}
  assert set(reasons.values()) == {"hard", "too_easy"} and reasons["never"] == "hard"
  kept = {id for id, reason in reasons.items() if reason == "hard"}
  assert {row["problem_id"] for row in read(tmp_path / "out" / "train.jsonl")} == kept
  counts = json.loads((tmp_path / "out" / "summary.json").read_text())["counts"]
  assert counts == {"rows": 12, "kept": len(kept), "too_easy": 11 - len(kept), "no_answer": 1}

  longer = run(tmp_path, *flags, "--max_tokens=256")
  assert longer.returncode == 2 and "max_position_embeddings, 256" in longer.stderr

  written = (tmp_path / "out" / "hard" / "sampled-16.rollouts.jsonl").read_bytes()
  again = run(tmp_path, *flags, "--samples=16", "--max_success_rate=1")
  assert again.stdout.splitlines()[1] == "rows kept                        11"
  assert (tmp_path / "out" / "hard" / "sampled-16.rollouts.jsonl").read_bytes() == written
  other = run(tmp_path, *flags, "--samples=8")
  assert other.returncode == 2
  assert "holds samples of another trial: samples was 16, is 8" in other.stderr


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--hard"], "error: --hard needs a --model"),
    (["--hard", "--model=gone/model", "--domain=swe"], "error: --hard needs a --model, and probl"),
    (["--hard", "--model=m", "--fields=problem=q,solution=s"], "error: --hard: no problem has a"),
  ],
)
def test_prepare_hard_needs_a_model_and_answers(rows, flags, message):
  result = run(rows, "--source=rows.jsonl", FIELDS, "--output=out", *flags)
  assert result.returncode == 2
  assert result.stderr.startswith(message) and result.stderr.count("\n") == 1
