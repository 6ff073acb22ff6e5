"""Checkpoints: which are kept, which are never read, and that a restore is exact, bit for bit."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srl_jax.errors import UserError
from srl_jax.learner import checkpoint, checksums, optimizer, update
from srl_jax.learner.checkpoint import Checkpoints, Progress, read_config
from srl_jax.policy import model as M
from srl_jax.policy.sharding import make_mesh


@pytest.fixture
def opened(tmp_path):
  """opened(keep) -> Checkpoints of one workdir; closes the one before, as a new process would."""
  made = []

  def open_one(keep=2):
    while made:
      made.pop().close()
    made.append(Checkpoints(tmp_path, keep))
    return made[0]

  yield open_one
  while made:
    made.pop().close()


SMALL = ({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"m": np.ones(3, np.float32)})


def save(checkpoints, step, score=None, offset=0.0):
  model, moments = jax.tree.map(lambda x: jnp.asarray(x) + offset, SMALL)
  checkpoints.save(update.TrainState(step, model, moments), Progress(seconds=step), score)
  checkpoints.wait()


def weights_of(checkpoints, step):
  model, _, progress = checkpoints.restore(step, *as_jax())
  assert progress.seconds == step
  return np.asarray(model["w"])


def as_jax():
  return jax.tree.map(jnp.asarray, SMALL)


def test_restore_refuses_a_damaged_checkpoint(opened, tmp_path):
  """Whichever file is truncated, the checkpoint is restored or refused with its name."""
  save(opened(), 1)
  opened().close()
  folder = tmp_path / "checkpoints" / "1"
  refused = 0
  for path in sorted(path for path in folder.rglob("*") if path.is_file()):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    try:
      weights_of(opened(), 1)
    except ValueError as error:
      assert str(error).startswith(f"{folder}: "), path
      refused += 1
    path.write_bytes(content)
  assert refused
  assert weights_of(opened(), 1).tolist() == SMALL[0]["w"].tolist()


DAMAGE = {
  "a flipped bit": lambda data, at: data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :],
  "512 zeros": lambda data, at: data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :],
  "the end is zeros": lambda data, at: data[:at] + bytes(len(data) - at),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_restore_never_returns_damaged_numbers(tmp_path, capsys, damage):
  """Whatever file is damaged, wherever: a restore gives the same numbers or an error."""
  rng = np.random.default_rng(int(os.environ.get("FUZZ_SEED", 0)))
  model = {"w": rng.normal(size=(64, 33)).astype(np.float32), "b": np.zeros(3, np.float32)}
  state = update.TrainState(1, *jax.tree.map(jnp.asarray, (model, {"m": model["w"] ** 2})))
  saved = Progress(queue=dict(epoch=1, position=3), scores={"1": 0.5}, config={"seed": 7})
  checkpoints = Checkpoints(tmp_path / "sound", 2)
  checkpoints.save(state, saved, 0.5)
  checkpoints.close()
  files = [path for path in (tmp_path / "sound").rglob("*") if path.is_file()]
  refused = 0
  for path in sorted(path for path in files if path.stat().st_size):
    for at in rng.integers(path.stat().st_size, size=3):
      shutil.copytree(tmp_path / "sound", tmp_path / "damaged")
      copy = tmp_path / "damaged" / path.relative_to(tmp_path / "sound")
      copy.write_bytes(DAMAGE[damage](path.read_bytes(), int(at)))
      try:
        checkpoints = Checkpoints(tmp_path / "damaged", 2)
        assert checkpoints.best_step() == 1
        found = checkpoints.restore(1, state.model, state.moments)
        checkpoints.close()
      except UserError as error:
        assert f"{tmp_path / 'damaged' / 'checkpoints'}" in str(error), (path, at)
        refused += 1
      else:
        assert found[2] == saved, (path, at)
        for a, b in zip(*map(jax.tree.leaves, (found[:2], (state.model, state.moments)))):
          assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), (path, at)
      shutil.rmtree(tmp_path / "damaged")
  assert refused > 3


def overwrite_numbers(folder):
  """Zeros in the second half of every data file of a checkpoint's weights."""
  for path in (folder / "model").rglob("d/*"):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def test_restore_last_uses_the_checkpoint_before_a_damaged_one(opened, tmp_path, capsys):
  """The damaged ones are named and renamed; their steps are saved again."""
  checkpoints = opened(keep=4)
  for step in (2, 4, 6):
    save(checkpoints, step, offset=step)
  for step in (4, 6):
    overwrite_numbers(tmp_path / "checkpoints" / str(step))
  checkpoints = opened(keep=4)
  step, model, _, progress = checkpoints.restore_last(*as_jax())
  assert step == progress.seconds == 2 and checkpoints.steps() == [2]
  assert (np.asarray(model["w"]) == SMALL[0]["w"] + 2).all()
  printed = capsys.readouterr().err
  for step in (4, 6):
    assert f"{tmp_path}/checkpoints/{step}: " in printed and f"{step}.damaged" in printed
    save(checkpoints, step, offset=-step)
    assert (weights_of(opened(keep=4), step) == SMALL[0]["w"] - step).all()
    checkpoints = opened(keep=4)
  assert opened(keep=4).steps() == [2, 4, 6]


def test_restore_last_renames_nothing_if_all_are_damaged(opened, tmp_path):
  """Nor when the model is another one, which may be a mistake in the config."""
  for step in (2, 4):
    save(opened(), step)
  with pytest.raises(UserError, match="checkpoints/4"):
    opened().restore_last({"w": jnp.zeros((3, 3))}, as_jax()[1])
  for step in (2, 4):
    overwrite_numbers(tmp_path / "checkpoints" / str(step))
  with pytest.raises(UserError, match="checkpoints/4: .*remove"):
    opened().restore_last(*as_jax())
  assert opened().steps() == [2, 4]


@pytest.mark.parametrize("text", ["", "[]", '{"score": NaN}', "\0\0\0"])
def test_checkpoints_refuse_a_damaged_score(opened, tmp_path, text):
  """Is refused before orbax reads it, which would crash; set aside if others are left."""
  for step in (2, 4):
    save(opened(), step, score=0.5)
  opened().close()
  (tmp_path / "checkpoints" / "4" / "metrics" / "metrics").write_text(text)
  with pytest.raises(UserError, match="checkpoints/4: .*score.*remove"):
    Checkpoints(tmp_path)
  checkpoint.set_aside_damaged_scores(tmp_path)
  assert opened().steps() == [2]


def test_saved_config_returns_the_config_of_the_checkpoint(opened, tmp_path):
  """A missing or damaged config.json is replaced by it; without a checkpoint that is an error."""
  with pytest.raises(UserError, match="config.json"):
    read_config(tmp_path)
  state = update.TrainState(1, *as_jax())
  checkpoints = opened()
  checkpoints.save(state, Progress(config={"version": "0.2.0", "seed": 7}))
  checkpoints.wait()
  assert read_config(tmp_path) == {"version": "0.2.0", "seed": 7}
  (tmp_path / "config.json").write_bytes(bytes(9))
  assert read_config(tmp_path) == {"version": "0.2.0", "seed": 7}


@pytest.mark.parametrize("specs", [("fsdp=8", "data=2,fsdp=4"), ("data=2,fsdp=2,tensor=2", "")])
def test_checksums_are_the_same_on_every_mesh(policy, specs):
  found = []
  for spec in specs:
    with contextlib.ExitStack() as stack:
      if spec:
        stack.enter_context(jax.set_mesh(make_mesh(spec)))
      found.append(checksums.checksums(policy()))
  assert found[0] == found[1]


def test_checksums_depend_on_every_bit_and_place():
  rng = np.random.default_rng(0)
  whole = rng.normal(size=(4, 5, 6)).astype(np.float32)
  changed = [whole[::-1], whole.swapaxes(0, 1), np.roll(whole, 1, 2)]
  for bit in range(32):
    one = whole.copy()
    one.view(np.uint32)[tuple(rng.integers(whole.shape))] ^= np.uint32(1 << bit)
    changed.append(one)
  sums = [checksums.checksums(jnp.asarray(array))[0] for array in (whole, *changed)]
  assert len(set(sums)) == len(sums)


def test_restore_refuses_the_checkpoint_of_another_model(opened):
  save(opened(), 1)
  with pytest.raises(ValueError, match="checkpoints/1"):
    opened().restore(1, {"w": jnp.zeros((3, 3))})
  with pytest.raises(ValueError, match="checkpoints/1"):
    opened().restore(1, {"other": jnp.zeros((2, 3))})


@pytest.mark.parametrize("text", ['{"method": ', "[]"])
def test_read_config_refuses_a_damaged_file(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match="config.json: "):
    read_config(tmp_path)


@pytest.mark.parametrize("spec", ["", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2"])
def test_restore_onto_any_mesh_gives_the_same_state(policy, opened, spec):
  """A checkpoint of fsdp=8 on another mesh: every bit is equal, the layout is the new mesh's."""
  chain = types.SimpleNamespace(schedule="constant", warmup=0.0, b2=0.999, weight_decay=0.0)
  chain.lr, chain.grad_norm = 1e-3, 1.0
  tx = optimizer.make(chain, 10)
  progress = Progress(
    queue=dict(epoch=1, position=3, head=[[0, 4], [1, 2]]),
    scores={"5": 0.25},
    before=dict(greedy=0.1),
    seconds=12.5,
    done=True,
  )
  with jax.set_mesh(make_mesh("fsdp=8")):
    model = policy()
    grads = jax.tree.map(jnp.cos, model)
    model, moments, _ = update.apply(tx, model, update.init_moments(tx, model), grads)
    opened().save(update.TrainState(7, model, moments), progress)
    wanted = jax.tree.map(np.asarray, (model, moments))

  def restore():
    model = policy(seed=1)
    layouts = jax.tree.map(lambda x: x.sharding, (model, update.init_moments(tx, model)))
    shapes = M.abstract(model.config)
    model, moments, found = opened().restore(7, shapes, jax.eval_shape(tx.init, shapes))
    assert found == progress
    for a, b, layout in zip(*map(jax.tree.leaves, ((model, moments), wanted, layouts))):
      assert a.dtype == b.dtype and np.asarray(a).tobytes() == b.tobytes()
      assert a.sharding == layout

  if spec:
    with jax.set_mesh(make_mesh(spec)):
      restore()
  else:
    restore()


def test_restore_returns_the_model_alone(opened):
  save(opened(), 3)
  model, moments, progress = opened().restore(3, as_jax()[0])
  assert moments is None and progress.seconds == 3
  assert (np.asarray(model["w"]) == SMALL[0]["w"]).all()


def test_save_keeps_the_last_and_the_best(opened):
  """keep = 2; the later of equal scores is the best, and is kept when it is not among the last."""
  checkpoints, seen = opened(keep=2), []
  for step, score in [(1, 0.5), (2, 0.9), (3, None), (4, 0.9), (5, 0.1), (6, None), (7, 0.2)]:
    save(checkpoints, step, score)
    seen.append((checkpoints.steps(), checkpoints.best_step()))
  assert seen == [
    ([1], 1),
    ([1, 2], 2),
    ([2, 3], 2),
    ([3, 4], 4),
    ([4, 5], 4),
    ([4, 5, 6], 4),
    ([4, 6, 7], 4),
  ]
  checkpoints = opened(keep=2)  # scores are on the disk
  assert (checkpoints.steps(), checkpoints.best_step()) == seen[-1]


def test_best_step_without_scores_is_the_last(opened):
  checkpoints = opened()
  assert checkpoints.best_step() is None and checkpoints.steps() == []
  for step in (1, 2):
    save(checkpoints, step)
  assert checkpoints.best_step() == 2


def test_save_skips_a_step_that_is_saved(opened):
  """A stop right after a validated step must not cost its score, nor the checkpoint if killed."""
  checkpoints = opened()
  save(checkpoints, 1, score=0.9)
  save(checkpoints, 2, score=0.3)
  save(opened(), 2, score=None, offset=1.0)
  save(opened(), 1, score=None, offset=1.0)
  checkpoints = opened()
  assert checkpoints.best_step() == 1
  assert (weights_of(checkpoints, 2) == SMALL[0]["w"]).all()


def test_steps_leave_out_a_half_written_checkpoint(opened, tmp_path):
  """A folder under orbax's temporary name is ignored, and its step can be saved again."""
  save(opened(), 2)
  folder = tmp_path / "checkpoints"
  whole = sorted(path for path in (folder / "2").rglob("*") if path.is_file())
  shutil.copytree(folder / "2", folder / "4.orbax-checkpoint-tmp")
  for path in whole[::2]:
    os.truncate(folder / "4.orbax-checkpoint-tmp" / path.relative_to(folder / "2"), 0)
  checkpoints = opened()
  assert checkpoints.steps() == [2] and checkpoints.best_step() == 2
  save(checkpoints, 4, offset=1.0)
  assert opened().steps() == [2, 4]
  assert (weights_of(opened(), 4) == SMALL[0]["w"] + 1).all()


def test_present_ignores_a_temporary_folder(tmp_path):
  """A run killed in its first save starts from the beginning."""
  assert not Checkpoints.present(tmp_path)
  (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
  assert not Checkpoints.present(tmp_path)
  (tmp_path / "checkpoints" / "2").mkdir()
  assert Checkpoints.present(tmp_path)


def test_steps_leave_out_a_half_deleted_checkpoint(opened, tmp_path):
  """Old checkpoints are removed file by file, and a kill may interrupt that."""
  for step, score in [(1, 0.5), (2, 0.9)]:
    save(opened(), step, score)
  (tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA").unlink()
  shutil.rmtree(tmp_path / "checkpoints" / "1" / "model")
  checkpoints = opened(keep=1)
  assert checkpoints.steps()[-1] == checkpoints.best_step() == 2
  assert (weights_of(checkpoints, 2) == SMALL[0]["w"]).all()
  save(checkpoints, 3)
  assert checkpoints.steps() == [2, 3]


def test_restore_reads_the_progress_of_version_0_1(opened, monkeypatch):
  """0.1.0 also stored its step and a batch in flight; init_from reads such runs."""
  stored = json.dumps(dataclasses.asdict(Progress()) | {"step": 1, "ahead": None})
  as_bytes = {"json": np.frombuffer(stored.encode(), np.uint8)}
  monkeypatch.setattr(checkpoint, "_as_bytes", lambda progress, sums: as_bytes)
  save(opened(), 1)
  assert opened().restore(1, as_jax()[0])[2] == Progress()


SAVE_TWICE = """
import pathlib, sys
import jax
from srl_jax.learner.checkpoint import Checkpoints, Progress
from srl_jax.learner.update import TrainState

double = jax.jit(lambda x: 2 * x, donate_argnums=0)
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
w = jax.random.normal(jax.random.key(0), (1 << 24,))
for step in (1, 2):
  print("saving", step, float(w[7]), flush=True)
  checkpoints.save(TrainState(step, {"w": w}, {"m": w[:1]}), Progress(seconds=step))
  w = double(w)  # in the buffer that is being written
  if step == 1:
    checkpoints.wait()
print("still training", flush=True)
sys.stdin.read()
"""


def test_save_that_is_killed_leaves_the_checkpoint_before(tmp_path):
  """SIGKILL during the background save of step 2: the restored numbers are those of their step."""
  run = [sys.executable, "-c", SAVE_TWICE, str(tmp_path)]
  pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  with subprocess.Popen(run, **pipes) as process:
    values = [float(process.stdout.readline().split()[2]) for _ in range(2)]
    assert process.stdout.readline() == "still training\n"
    process.kill()
  checkpoints = Checkpoints(tmp_path)
  shape = jax.ShapeDtypeStruct((1 << 24,), jnp.float32)
  steps = checkpoints.steps()
  assert steps in ([1], [2])  # [2]: it was whole before the kill
  model, _, progress = checkpoints.restore(steps[0], {"w": shape})
  assert progress.seconds == steps[0] and float(model["w"][7]) == values[steps[0] - 1]
  checkpoints.close()


def test_save_copies_arrays_that_are_donated_later(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  w = jax.random.normal(jax.random.key(0), (1 << 22,))
  before, shape = np.array(w), jax.ShapeDtypeStruct(w.shape, w.dtype)
  checkpoints.save(update.TrainState(1, {"w": w}, {"m": w[:1] + 0}), Progress())
  jax.block_until_ready(jax.jit(lambda x: 2 * x, donate_argnums=0)(w))
  assert (np.asarray(checkpoints.restore(1, {"w": shape})[0]["w"]) == before).all()
  checkpoints.close()


ABANDON_A_WRITE = """
import asyncio, sys, time
import numpy as np
import tensorstore as ts
from srl_jax.learner import checkpoint

folder = {"driver": "file", "path": sys.argv[1]}
how = dict(create=True, shape=[100, 100], dtype=ts.float32)
store = ts.open({"driver": "zarr", "kvstore": folder}, **how).result()


async def write():
  await store.write(np.ones((100, 100), np.float32))


loop = asyncio.new_event_loop()
task = loop.create_task(write())
loop.run_until_complete(asyncio.sleep(0))  # starts the write, and does not wait for it
loop.close()
time.sleep(1)


class Wrong:
  def __del__(self):
    raise RuntimeError("another fault")


Wrong()
"""


def test_abandoned_writes_print_nothing(tmp_path):
  """When a disk is full, orbax abandons writes that tensorstore's threads then finish."""
  run = [sys.executable, "-c", ABANDON_A_WRITE, str(tmp_path / "array")]
  done = subprocess.run(run, capture_output=True, text=True)
  assert done.returncode == 0 and "Event loop is closed" not in done.stderr
  assert "another fault" in done.stderr  # other errors are reported
