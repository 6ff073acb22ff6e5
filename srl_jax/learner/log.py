"""The written record of a run: a line of metrics and a file of rollouts for each step."""

import json
import pathlib
import re
import secrets
import sys
import types

import jax

from srl_jax import folders, hosts
from srl_jax.errors import UserError
from srl_jax.learner.dynamic_sampling import Group
from srl_jax.learner.page_process import Page

# step_000012.jsonl, or of several processes step_000012.003.jsonl each.
ROLLOUTS = re.compile(r"step_(?P<step>\d+)(\.\d+)?\.(?P<kind>jsonl|partial)")


def rollout_lines(groups: list[Group]) -> str:
  """One JSON line for each group that this process sampled: prompt, target, texts, rewards, and why
  it was dropped. Its key `group` is the group's index among all groups of the step.
  """
  lines = []
  for index, group in enumerate(groups):
    if group.rollouts is None:
      continue
    line = {
      "group": index,
      "prompt_id": group.example.id,
      "task": group.example.task,
      "prompt_tokens": len(group.prompt.token_ids),
      "problem": group.example.problem,
      "context": group.example.context,
      "hint": group.example.hint,
      "target": group.example.target,
      "texts": [rollout.text for rollout in group.rollouts],
      "actions": [score.action for score in group.scores],
      "rewards": group.rewards,
      "failures": group.failures,
      "weight_versions": [rollout.weight_version for rollout in group.rollouts],
      "kept": group.dropped is None,
      "dropped": group.dropped,
    }
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  return "".join(lines)


class Log:
  """The files of a run: metrics.jsonl, rollouts/, its page, TensorBoard, W&B.

  Process 0 writes all but the files in rollouts/, of which each process writes its own.

  Args:
    workdir: the run's folder.
    log: config group with report and tensorboard (bool), and wandb (a project's name, or "").
    step: the checkpoint's step that the run continues from; what was written after it is removed.
    name: the run's name for W&B.
    config: shown there.
  """

  def __init__(self, workdir: pathlib.Path, log, *, step: int, name: str, config: dict):
    self.metrics = workdir / "metrics.jsonl"
    self.rollouts = workdir / "rollouts"
    self.page = Page(workdir, log.report and hosts.is_writer())
    self._board = self._wandb = None
    fault = None
    if log.wandb and hosts.is_writer():
      try:
        self._wandb = _open_wandb(workdir, log.wandb, name, config)
      except UserError as error:
        fault = str(error)
    fault = hosts.broadcast(fault)
    if fault:  # raised by every process, or the others would hang in the next collective
      raise UserError(fault)
    if not hosts.is_writer():
      return
    # Steps after the checkpoint are repeated; their old lines and files must not stay beside the
    # new ones.
    self.rollouts.mkdir(parents=True, exist_ok=True)
    _cut_back(self.metrics, self.rollouts, step)
    if log.tensorboard:
      from tensorboardX import SummaryWriter  # slow to import

      self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else 0)

  def write_rollouts(self, step: int, groups: list[Group]) -> None:
    """Writes the groups that this process sampled for a step, kept or not."""
    if text := rollout_lines(groups):
      process = f".{jax.process_index():03d}" if jax.process_count() > 1 else ""
      folders.write_text(self.rollouts / f"step_{step:06d}{process}.jsonl", text)

  def step(self, step: int, metrics: dict) -> None:
    """Writes one step's metrics."""
    if not hosts.is_writer():
      return
    # Opened for each line, so that no line is lost in a buffer when the process is killed.
    with self.metrics.open("a", encoding="utf-8") as file:
      file.write(json.dumps({"step": step} | metrics) + "\n")
    if self._board:
      for name, value in metrics.items():
        self._board.add_scalar(name, value, step)
    if self._wandb:
      self._wandb.log(metrics, step=step)
    self.page.write_if_due()

  def close(self) -> None:
    self.page.close()
    if self._board:
      _close_board(self._board)
    if self._wandb:
      self._wandb.finish()


def _close_board(board) -> None:
  """Closes a tensorboardX writer, on a full disk too."""
  writer = board.file_writer.event_writer
  try:
    board.close()
  except OSError as error:
    if not folders.is_disk_full(error):
      raise
    # Its exit handler would close it again, and print a traceback; so would its thread.
    board.file_writer.event_writer = types.SimpleNamespace(close=lambda: None)
    writer._worker.stop()


def _open_wandb(workdir: pathlib.Path, project: str, name: str, config: dict):
  """The W&B run of a workdir, begun or continued. Its id is kept in WORKDIR/wandb_id.

  The workdir's name is no id: runs/a/srl and runs/b/srl would write into one W&B run.
  """
  try:
    import wandb  # optional, not in requirements.txt
  except ImportError as error:
    raise UserError(
      f"log.wandb: {project!r} needs the package wandb; pip install wandb, or leave it empty"
    ) from error
  path = workdir / "wandb_id"
  if not path.exists():
    workdir.mkdir(parents=True, exist_ok=True)
    folders.write_text(path, secrets.token_hex(8))
  id = path.read_text(encoding="utf-8").strip()
  try:
    return wandb.init(project=project, name=name, config=config, resume="allow", id=id)
  except Exception as error:  # no login, a refused name, no network: wandb has its own errors
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"log.wandb: W&B does not open a run in the project {project!r} ({type(error).__name__}:"
      f" {reason}); run `wandb login` or set WANDB_API_KEY, check the project's name, set"
      " WANDB_MODE=offline, or leave log.wandb empty"
    ) from error


def _cut_back(metrics: pathlib.Path, rollouts: pathlib.Path, step: int) -> None:
  """Removes what was written after `step`, a last half line and damaged lines included."""
  if folders.cut_to_whole_lines(metrics):
    earlier, damaged = [], []
    lines = metrics.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for number, line in enumerate(lines, start=1):
      found = _step_of(line)
      if found is None:
        damaged.append(number)
      elif found <= step and step > 0:  # what was measured before step 1 is measured again
        earlier.append(line + "\n")
    if damaged:  # e.g. blocks of zeros after a power failure
      print(f"{metrics}: left out damaged lines, from line {damaged[0]} on", file=sys.stderr)
    folders.write_text(metrics, "".join(earlier))
  # Rollouts of later steps, and what a kill left under the temporary name of an atomic write. A
  # user's own files, such as a gzipped step, stay.
  for path in rollouts.iterdir():
    match = ROLLOUTS.fullmatch(path.name)
    if match and (match["kind"] == "partial" or int(match["step"]) > step):
      path.unlink()


def _step_of(line: str) -> int | None:
  """The step of a line of metrics; None if the line is damaged."""
  try:
    step = json.loads(line)["step"]
  except (ValueError, KeyError, TypeError, RecursionError):
    return None
  return step if isinstance(step, int) else None
