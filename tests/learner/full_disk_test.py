"""A full disk ends a command with one line; nothing is lost, and the run continues with more room.

The disk is a small tmpfs in a mount namespace of the test.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, "-m", "srl_jax.train", f"--config={ROOT}/configs/quickstart.py:steps=8"]
TRAIN += ["--config.train.eval_every=0", "--config.train.save_every=2", "--config.eval.mode=off"]
TRAIN += ["--config.eval.benchmark=", "--config.batch.prompts=4", "--config.train.keep=3"]
# $1: size of the disk; $2: folder with its contents before and after; the rest: the command.
ON_DISK = """
mount -t tmpfs -o size="$1" tmpfs "$2/disk"
cp -a "$2/contents/." "$2/disk"
code=0; "${@:3}" || code=$?
rm -rf "$2/contents"; cp -a "$2/disk" "$2/contents"
exit $code
"""


@pytest.fixture
def on_disk(tmp_path):
  """on_disk(size, command) -> the finished command, with tmp_path/disk on a disk of that size."""
  for name in ("disk", "contents"):
    (tmp_path / name).mkdir()
  command = ["unshare", "-rm", "true"]
  if not shutil.which("unshare") or subprocess.run(command, capture_output=True).returncode:
    pytest.skip("needs unshare and user namespaces, to mount a small disk")

  def run(size, command):
    shell = ["unshare", "-rm", "bash", "-c", ON_DISK, "bash", size, str(tmp_path), *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, text=True)

  return run


def test_a_full_disk_ends_a_run_with_one_line_and_room_continues_it(on_disk, tmp_path):
  command = [*TRAIN, f"--workdir={tmp_path}/disk/run"]
  full = on_disk("1900k", command)
  assert full.returncode == 2, full.stderr
  lines = [line for line in full.stderr.splitlines() if "Unable to initialize backend" not in line]
  assert len(lines) == 1 and "no space left" in lines[0].lower(), full.stderr
  assert f"{tmp_path}/disk/run" in lines[0]
  roomy = on_disk("30m", command)
  assert roomy.returncode == 0, roomy.stderr
  steps = sorted(int(path.name) for path in (tmp_path / "contents/run/checkpoints").iterdir())
  assert steps[-1] == 8

  # And an export of it.
  shutil.copytree(tmp_path / "contents", tmp_path / "kept")
  shutil.rmtree(tmp_path / "contents")
  (tmp_path / "contents").mkdir()
  export = [sys.executable, "-m", "srl_jax.export", f"--workdir={tmp_path}/kept/run"]
  small = on_disk("100k", [*export, f"--output={tmp_path}/disk/model"])
  assert small.returncode == 2 and "no space left" in small.stderr.lower()
  assert "Traceback" not in small.stderr and not list((tmp_path / "contents").glob("model*"))
