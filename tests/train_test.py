"""What a user gets wrong: one line that says what and where, exit code 2, before any work."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from configs import quickstart
from srl_jax import folders
from srl_jax.learner import workdir

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Imports cost seconds, so one process makes them and each command line runs in a fork of it.
DRIVER = """
import json, os, sys, traceback
import jax
from srl_jax import config as common
from srl_jax import command_line, train
from srl_jax.learner import setup

for i, arguments in enumerate(json.loads(sys.argv[1])):
  child = os.fork()
  if child == 0:
    for number, name in ((1, "out"), (2, "err")):
      os.dup2(os.open(f"{sys.argv[2]}/{i}.{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["train.py", *arguments]
    try:
      command_line.run(train.main)
    except SystemExit as end:
      code = end.code
    except BaseException:
      traceback.print_exc()
      code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
  print(i, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

QUICK = "--config=configs/quickstart.py"
NEW = "--workdir={folder}/new"
MATH = "--config=configs/srl_math.py:tiny,data="
CASES = {  # name: (arguments, what the one line must say)
  "no config": ([], "--config: name a config file, for example configs/quickstart.py"),
  "config missing": (["--config=configs/nosuch.py"], "'configs/nosuch.py' does not exist"),
  "workdir is a URL": ([QUICK, "--workdir=gs://b/r"], "--workdir=gs://b/r is a URL: mount"),
  "unknown key": ([QUICK, "--config.batch.promts=3"], "did you mean 'batch.prompts'?"),
  "unknown argument": ([QUICK + ":sede=1"], "config argument 'sede' is unknown; this config takes"),
  "wrong type": ([QUICK, "--config.batch.prompts=many"], "config.batch.prompts"),
  "wrong value": ([QUICK, NEW, "--config.method=ppo"], "method: 'ppo' is unknown; use srl"),
  "contradiction": ([QUICK, NEW, "--config.rollout.samples=1"], "use at least 2"),
  "mesh too large": ([QUICK, NEW, "--config.mesh=data=4096"], "'data=4096' needs 4096 devices"),
  "no data file": ([MATH + "nosuch.jsonl", NEW], "nosuch.jsonl"),
  "data file empty": ([MATH + "{folder}/empty.jsonl", NEW], "{folder}/empty.jsonl"),
  "broken JSON line": ([MATH + "{folder}/broken.jsonl", NEW], "{folder}/broken.jsonl:2:"),
  "unknown problems": ([QUICK, NEW, "--config.data.path=soft"], "'soft' of the built-in problems"),
  "no weights": (
    [QUICK, NEW, "--config.model={folder}/model"],
    "{folder}/model: no weights (model.safetensors or model.safetensors.index.json)",
  ),
  "beyond the model's positions": (
    [QUICK, NEW, "--config.rollout.max_tokens=200"],
    "exceed its max_position_embeddings, 256; set rollout.max_tokens=160 (",
  ),
  "tokenizer beyond the embedding": (
    [QUICK, NEW, "--config.model={folder}/narrow"],
    "with id 38, but the embedding has vocab_size=30 rows",
  ),
  "no model": ([QUICK, NEW, "--config.model=./nosuch"], "./nosuch"),
  "workdir in use": ([QUICK, "--workdir={folder}/busy"], "{folder}/busy: process"),
  "no place for a workdir": ([QUICK, "--workdir=/dev/null/x"], "/dev/null/x: Not a directory"),
  "damaged config": ([QUICK, "--workdir={folder}/damaged"], "damaged/config.json: not JSON"),
  "another config's workdir": (
    [QUICK, "--workdir={folder}/other", "--config.seed=1", "--config.optimizer.lr=1.0"],
    "holds a run of another config: optimizer.lr was 0.0004, is 1.0; seed was 0, is 1. Give",
  ),
}
GOOD_ROW = json.dumps({"question": "1+1?", "deepseek_attempt": "1. a\n2. b", "solution": "2"})


def model_folder(folder, **settings):
  """The miniature with other settings in its config.json."""
  shutil.copytree(ROOT / "configs" / "miniature", folder)
  raw = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(raw | settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """What the cases speak of: data files, a model without weights, the workdir of another run."""
  folder = tmp_path_factory.mktemp("bad")
  (folder / "empty.jsonl").write_text("")
  (folder / "broken.jsonl").write_text(GOOD_ROW + "\n" + '{"question": "1+1?", \n')
  (folder / "model").mkdir()
  for path in (ROOT / "configs" / "miniature").glob("*.json"):
    shutil.copy(path, folder / "model")
  model_folder(folder / "narrow", vocab_size=30)
  config = quickstart.get_config("steps=5")
  workdir.claim(folder / "other", config)
  for name in ("other", "damaged"):
    (folder / name / "checkpoints" / "5").mkdir(parents=True)
  (folder / "damaged" / "config.json").write_text('{"method": ')
  return folder


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
  """{name: (exit code, stderr)}."""
  said = tmp_path_factory.mktemp("said")
  lines = [
    [a.replace("{folder}", str(folder)) for a in arguments] for arguments, _ in CASES.values()
  ]
  command = [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(lines), str(said)]
  environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
  with folders.locked(folder / "busy"):
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  codes = [int(line.split()[1]) for line in done.stdout.splitlines()]
  return {
    name: (code, (said / f"{i}.err").read_text())
    for i, (name, code) in enumerate(zip(CASES, codes))
  }


@pytest.mark.parametrize("name", CASES)
def test_train_refuses_bad_input_in_one_line(folder, results, name):
  code, said = results[name]
  assert code == 2, said
  assert said.startswith("error: ") and said.count("\n") == 1, said
  assert CASES[name][1].replace("{folder}", str(folder)) in said and len(said) < 600


def test_train_that_is_refused_leaves_nothing(folder, results):
  """No claim on the other run's folder, and no checkpoint in a new one."""
  assert json.loads((folder / "other" / "config.json").read_text())["seed"] == 0
  assert not list((folder / "new").glob("checkpoints/[0-9]*"))


OUT_OF_MEMORY = """
import jax
from srl_jax import command_line, train

def run_training(config, workdir):
  raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

train.run_training = run_training
command_line.run(train.main)
"""


def test_train_reports_a_device_without_room(tmp_path):
  """With the keys to lower. The error is XLA's; to provoke it for real can hang a CPU process."""
  command = [sys.executable, "-c", OUT_OF_MEMORY, QUICK, f"--workdir={tmp_path}"]
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
  assert "a device ran out of memory (RESOURCE_EXHAUSTED: Out of memory" in done.stderr
  for key in ("batch.tokens_per_device (4608)", "rollout.width (128)", "batch.remat=full"):
    assert key in done.stderr
