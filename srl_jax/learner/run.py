"""What a training loop works with; setup.open_run makes it."""

import dataclasses
import pathlib
import time

import optax
from ml_collections import ConfigDict

from srl_jax.evals.math_benchmarks import Solver
from srl_jax.learner.checkpoint import Checkpoints, Progress
from srl_jax.learner.log import Log
from srl_jax.learner.stop import StopSignal
from srl_jax.learner.update import TrainState
from srl_jax.progress import ProgressLine
from srl_jax.rollout.engine import Engine
from srl_jax.rollout.prompt_set import PromptSet


@dataclasses.dataclass
class Run:
  """A run at its last checkpoint, or at its start.

  Fields:
    config, workdir: of the run.
    steps: of the whole run.
    tx: the optimiser.
    state: step, policy and moments; the loop replaces it.
    progress: what a checkpoint holds besides.
    checkpoints: of the workdir.
    tokenizer, stop_ids: of the policy; the first stop id ends a supervised target.
    folder: of the policy's Hugging Face files.
    train_prompts, held_out: prompts to train on and to validate with.
    engine: samples rollouts.
    solver: solves whole problems, for final answers.
    stop: whether a signal asked the run to stop.
    log, line: what is written and what is shown.
    start_time: on the monotonic clock; work before a restart is counted.
  """

  config: ConfigDict
  workdir: pathlib.Path
  steps: int
  tx: optax.GradientTransformation
  state: TrainState
  progress: Progress
  checkpoints: Checkpoints
  tokenizer: object
  stop_ids: list[int]
  folder: pathlib.Path
  train_prompts: PromptSet
  held_out: PromptSet
  engine: Engine
  solver: Solver
  stop: StopSignal
  log: Log
  line: ProgressLine
  start_time: float

  def is_due(self, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and self.state.step % every == 0

  def save_if_due(self, is_last: bool) -> None:
    """Saves every train.save_every steps, at every validated step and at the last one."""
    score = self.progress.scores.get(str(self.state.step))
    if is_last or score is not None or self.is_due(self.config.train.save_every):
      self.save(score)

  def save(self, score: float | None = None) -> None:
    """Writes a checkpoint; `score` is that of the validation at this step, if there was one."""
    self.progress.seconds = time.monotonic() - self.start_time
    self.checkpoints.save(self.state, self.progress, score)
