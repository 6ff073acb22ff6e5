"""The start of a run: claiming a workdir, first weights, signals, damaged files, changed data."""

import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

from configs import quickstart
from srl_jax import __version__, folders
from srl_jax.errors import Stopped, UserError
from srl_jax.learner import setup, workdir
from srl_jax.learner import start as start_of_run
from srl_jax.learner.checkpoint import Checkpoints, Progress
from srl_jax.learner.rollouts import sampling_params
from srl_jax.learner.update import TrainState
from srl_jax.policy import model as M
from srl_jax.policy.hf_files import load_config
from srl_jax.policy.sharding import make_mesh
from srl_jax.policy.weights import save_hf

MODEL = pathlib.Path(__file__).resolve().parents[2] / "configs" / "miniature"


def config(**values):
  made = quickstart.get_config()
  made.model = str(MODEL)
  made.update_from_flattened_dict({key.replace("__", "."): v for key, v in values.items()})
  return made


# ---- workdirs


@pytest.fixture
def claimed(tmp_path):
  """A workdir with a checkpoint of `config()`."""
  workdir.claim(tmp_path / "run", config())
  (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
  return tmp_path / "run"


def test_claim_accepts_the_same_config(claimed):
  workdir.claim(claimed, config())


def test_claim_accepts_other_values_of_free_keys(claimed):
  free = dict(mesh="fsdp=2", train__steps=7, train__epochs=2, train__keep=9, train__save_every=1)
  free |= dict(log__tensorboard=False, log__wandb="mine", rollout__servers="http://a:1")
  assert {key.replace("__", ".") for key in free} <= set(workdir.FREE_KEYS)
  workdir.claim(claimed, config(**free))
  assert json.loads((claimed / "config.json").read_text())["train"]["steps"] == 7


@pytest.mark.parametrize(
  "values, told",
  [
    (dict(seed=3), "seed was 0, is 3"),
    (dict(optimizer__lr=1e-3), "optimizer.lr was 0.0004, is 0.001"),
    (dict(data__fields__problem="q"), "data.fields.problem was '', is 'q'"),
    (
      dict(algorithm__kl=0.1, train__eval_every=3),
      "algorithm.kl was 0.0, is 0.1; train.eval_every",
    ),
  ],
)
def test_claim_refuses_another_config_and_names_the_keys(claimed, values, told):
  before = (claimed / "config.json").read_text()
  with pytest.raises(ValueError, match="run") as error:
    workdir.claim(claimed, config(**values))
  assert told in str(error.value)
  assert (claimed / "config.json").read_text() == before


def test_claim_refuses_a_run_of_another_version(claimed):
  """One line with both versions; 0.1.0 wrote none into config.json."""
  made = json.loads((claimed / "config.json").read_text())
  assert made.pop("version") == __version__
  (claimed / "config.json").write_text(json.dumps(made))
  with pytest.raises(UserError, match=f"0.1.0.*{__version__}"):
    workdir.claim(claimed, config())


def test_claim_accepts_a_workdir_without_checkpoints(tmp_path):
  """A run that ended before or during its first save does not claim the workdir."""
  workdir.claim(tmp_path, config())
  (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
  workdir.claim(tmp_path, config(seed=3))
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3


# ---- weights


@pytest.fixture(scope="module")
def architecture():
  return load_config(MODEL)


def same(model, wanted):
  pairs = zip(jax.tree.leaves(model), jax.tree.leaves(wanted))
  return all((np.asarray(a) == np.asarray(b)).all() for a, b in pairs)


def test_initial_weights_by_init_from(architecture, tmp_path, monkeypatch):
  """A run's best step, a Hugging Face folder, or random ones of the config's seed."""
  first, second = (M.init(architecture, seed) for seed in (1, 2))
  save_hf(architecture, first, tmp_path / "hf", source=MODEL)
  checkpoints = Checkpoints(tmp_path / "run", keep=3)
  for step, model, score in [(1, first, 0.1), (2, second, 0.9), (3, first, 0.5)]:
    checkpoints.save(TrainState(step, model, {"m": np.zeros(1)}), Progress(), score)
  checkpoints.close()
  load = lambda **values: start_of_run.start_weights(config(**values), tmp_path / "hf")
  assert same(load(), first)
  with monkeypatch.context() as patched:  # 15 GB at 7B, for nothing
    patched.setattr(start_of_run, "load_hf", None)
    assert same(load(init_from=str(tmp_path / "run")), second)
  assert same(load(init_from=str(tmp_path / "hf")), first)
  assert same(load(init_from="random", seed=2), second)
  half = load(dtype="bfloat16")
  assert half.config.dtype == "bfloat16" and half.norm[...].dtype == np.float32


# ---- signals


@pytest.fixture
def kill_in(monkeypatch):
  """kill_in(name) sends SIGTERM when setup.<name> is called."""

  def patch(name):
    real = getattr(setup, name)

    def wrapped(*args, **kwargs):
      os.kill(os.getpid(), signal.SIGTERM)
      return real(*args, **kwargs)

    monkeypatch.setattr(setup, name, wrapped)

  before = signal.getsignal(signal.SIGTERM)
  yield patch
  assert signal.getsignal(signal.SIGTERM) == before


def begin(tmp_path):
  small = config(init_from="random", data__path="hard:4", data__holdout=1, log__tensorboard=False)
  return setup.open_run(small, tmp_path)


@pytest.mark.parametrize("name", ["load_examples", "load_state", "PromptSet"])
def test_open_run_hears_a_signal(kill_in, tmp_path, name):
  """Ends the run before its first step, and the signal handlers are restored."""
  kill_in(name)
  stopped = pytest.raises(Stopped, match="SIGTERM")
  with jax.set_mesh(make_mesh("data=1")), stopped, begin(tmp_path):
    raise AssertionError("the run has begun")


def test_solver_hears_a_signal(kill_in, tmp_path):
  """The benchmark before the first step and after the last is interrupted too."""
  with jax.set_mesh(make_mesh("data=1")), begin(tmp_path) as run:
    run.engine.load_weights(run.state.model, 0)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"):
      list(run.solver.engine.sample(run.held_out.all_prompts(), 1, sampling_params(config())))


def test_finished_returns_the_summary_of_a_run_of_the_same_length(tmp_path):
  wanted = config(train__steps=6)
  assert workdir.finished(tmp_path, wanted) is None
  (tmp_path / "checkpoints" / "6").mkdir(parents=True)
  summary = {"steps": 6, "train": {"steps": 6, "epochs": wanted.train.epochs}}
  folders.write_json(tmp_path / "summary.json", summary)
  assert workdir.finished(tmp_path, wanted) == summary
  assert workdir.finished(tmp_path, config(train__steps=8)) is None  # to be continued
  (tmp_path / "checkpoints" / "7").mkdir()  # of a longer run that was stopped
  assert workdir.finished(tmp_path, wanted) is None


def test_finished_knows_a_run_that_ended_by_its_epochs(tmp_path):
  (tmp_path / "checkpoints" / "37").mkdir(parents=True)
  summary = {"steps": 37, "train": {"steps": 0, "epochs": 3}}
  folders.write_json(tmp_path / "summary.json", summary)
  assert workdir.finished(tmp_path, config(train__steps=0, train__epochs=3)) == summary
  assert workdir.finished(tmp_path, config(train__steps=0, train__epochs=4)) is None


@pytest.mark.parametrize("data", [b"", bytes(40), b"[]", b'{"steps"', b'{"steps": 6}'])
def test_finished_is_none_for_a_damaged_summary(tmp_path, data):
  (tmp_path / "checkpoints" / "6").mkdir(parents=True)
  (tmp_path / "summary.json").write_bytes(data)
  assert workdir.finished(tmp_path, config(train__steps=6)) is None


# ---- damaged files


@pytest.mark.parametrize("data", [None, b"", bytes(40), b"[]"])
def test_claim_reads_the_checkpoints_config_without_config_json(rows, tmp_path, data):
  """The checkpoint has the run's config, and config.json is rewritten from it."""
  rows(6)
  with jax.set_mesh(make_mesh("data=1")), start(tmp_path, seed=1) as run:
    run.save()
    made, folder = run.config, run.workdir
  workdir.write_config(folder, made)
  whole = (folder / "config.json").read_text()
  (folder / "config.json").unlink()
  if data is not None:
    (folder / "config.json").write_bytes(data)
  other = made.copy_and_resolve_references()
  other.seed = 2
  with pytest.raises(UserError, match="seed was 1, is 2"):
    workdir.claim(folder, other)
  workdir.claim(folder, made)
  assert (folder / "config.json").read_text() == whole


def test_claim_refuses_a_foreign_config_json(rows, tmp_path):
  rows(6)
  with jax.set_mesh(make_mesh("data=1")), start(tmp_path, seed=1) as run:
    run.save()
  other = run.config.copy_and_resolve_references()
  other.seed = 2
  workdir.write_config(run.workdir, other)
  with pytest.raises(UserError, match="seed was 1, is 2"):
    workdir.claim(run.workdir, other)


def test_open_run_continues_before_a_damaged_checkpoint(rows, tmp_path, capsys):
  """With the metrics of that step, and it can save the damaged step again."""
  rows(6)
  with jax.set_mesh(make_mesh("data=1")):
    with start(tmp_path, train__keep=3) as run:
      for step in (1, 2):
        run.state = run.state._replace(step=step)
        run.log.step(step, {})
        run.save()
    for path in (tmp_path / "run" / "checkpoints" / "2" / "moments").rglob("d/*"):
      path.write_bytes(bytes(path.stat().st_size))
    with start(tmp_path, train__keep=3) as run:
      assert run.state.step == 1
      assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 1
      run.state = run.state._replace(step=2)
      run.save()
    assert "checkpoints/2: " in capsys.readouterr().err
    with start(tmp_path, train__keep=3) as run:
      assert run.state.step == 2


# ---- data that has changed


@pytest.fixture
def rows(tmp_path):
  """rows(count, step="") writes `count` problems, with another text of their steps if given."""

  def write(count, step="Add 3"):
    lines = []
    for k in range(count):
      solution = f"1. **{step}**: {k}\\n2. **Add 1**: {k + 3}\\n3. **Add 1**: {k + 4}"
      lines.append(f'{{"q": "Start with {k}.", "s": "{solution}", "a": "{k + 5}"}}\n')
    (tmp_path / "rows.jsonl").write_text("".join(lines))

  return write


def start(tmp_path, model=MODEL, **values):
  given = dict(data__source="jsonl", data__path=str(tmp_path / "rows.jsonl"), data__holdout=2)
  given |= dict(data__fields__problem="q", data__fields__solution="s", data__fields__answer="a")
  given |= dict(init_from="random", log__tensorboard=False, data__keep_last_step=False)
  made = config(**given | values)
  made.model = str(model)
  return setup.open_run(made, tmp_path / "run")


def ids(prompts):
  return {example.problem_id for example in prompts.examples}


def test_open_run_refuses_changed_data_unless_accepted(rows, tmp_path):
  """More, fewer or other rows; with accept_change the same problems stay held out for good."""
  with jax.set_mesh(make_mesh("data=1")):
    rows(12)
    with start(tmp_path) as run:
      held_out = ids(run.held_out)
      run.progress.queue = dict(epoch=0, position=17, head=[[0, 19]])
      run.save()
    with start(tmp_path) as run:  # the same data
      assert run.progress.queue["position"] == 17
    for count, step in ((5, "Add 3"), (32, "Add 3"), (12, "Add 4")):
      rows(count, step)
      with pytest.raises(UserError, match="accept_change=True"), start(tmp_path):
        raise AssertionError("the run has begun")
    rows(32)
    with start(tmp_path, data__accept_change=True) as run:
      assert ids(run.held_out) == held_out and len(ids(run.train_prompts)) == 30
      assert run.progress.queue == dict(epoch=1, position=0, head=[])
      run.state = run.state._replace(step=1)
      run.progress.queue = dict(epoch=1, position=40, head=[])
      run.save()
    with start(tmp_path) as run:  # the accepted data is the run's from now on
      assert ids(run.held_out) == held_out and run.progress.queue["position"] == 40


def test_open_run_refuses_a_changed_tokenizer(rows, tmp_path):
  shutil.copytree(MODEL, tmp_path / "model")
  with jax.set_mesh(make_mesh("data=1")):
    rows(6)
    with start(tmp_path, tmp_path / "model") as run:
      run.save()
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    settings["chat_template"] += "{{- '\n' -}}"
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="chat template"), start(tmp_path, tmp_path / "model"):
      raise AssertionError("the run has begun")


def test_open_run_continues_a_checkpoint_without_a_data_record(rows, tmp_path):
  with jax.set_mesh(make_mesh("data=1")):
    rows(6)
    with start(tmp_path) as run:
      run.progress.data = None
      run.save()
    with start(tmp_path) as run:
      assert run.progress.data["sizes"] == [8, 4]
