"""A rollout engine that records responses in a file, so that nothing is sampled twice.

An interrupted evaluation continues where it stopped, also in the middle of stepwise episodes:
prompts with recorded responses replay them, and only the others are sampled.
"""

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from srl_jax import folders
from srl_jax.data.rows import json_lines
from srl_jax.errors import UserError
from srl_jax.rollout.engine import Engine, Prompt, Rollout, SamplingParams


class Journal:
  """A rollout engine (rollout.engine.Engine) that records the groups of another engine in a file.

  The file has one line per prompt: prompt_id, prompt (a checksum of its tokens) and rollouts.

  Args:
    engine: samples the prompts that are not in the file. The journal neither loads its weights nor
      closes it.
    path: the file; created, or continued after a truncated last line has been removed.
    progress: called after each group with the number of responses so far.
  """

  def __init__(self, engine: Engine, path: pathlib.Path, progress: Callable[[int], None]):
    self.engine, self.path, self.progress = engine, path, progress
    self.responses = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    self._written = {}
    # A killed process may have left an incomplete last line; its group is sampled again.
    if folders.cut_to_whole_lines(path):
      for _, row in json_lines(path):
        self._written[row["prompt_id"]] = row

  def sample(
    self, prompts: Sequence[Prompt], n: int, params: SamplingParams
  ) -> Iterator[list[Rollout]]:
    """Returns Engine.sample's groups; UserError if an id was recorded with another prompt."""
    checksums = {prompt.id: _checksum(prompt) for prompt in prompts}
    # The engine may return groups in any order, so each line has its prompt's id.
    new = [prompt for prompt in prompts if prompt.id not in self._written]
    # Recorded groups first: they cost nothing, and the caller may need them for its next turns.
    for prompt in prompts:
      if prompt.id in self._written:
        yield self._count(self._recall(prompt.id, checksums[prompt.id], n))
    with self.path.open("a", encoding="utf-8") as file:
      for group in self.engine.sample(new, n, params):
        id = group[0].prompt_id
        line = {"prompt_id": id, "prompt": checksums[id], "rollouts": list(map(_as_row, group))}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        # Flushed before the group is used: a process that is killed later never samples it again.
        file.flush()
        yield self._count(group)

  def load_weights(self, model, version: int) -> None:
    """Raises RuntimeError: recorded responses belong to one set of weights."""
    raise RuntimeError("Journal.load_weights: its file belongs to one set of weights")

  def close(self) -> None:
    """Does nothing: the owner of the wrapped engine closes it."""

  def _count(self, group: list[Rollout]) -> list[Rollout]:
    """Reports a group to `progress` and returns it."""
    self.responses += len(group)
    self.progress(self.responses)
    return group

  def _recall(self, id: str, checksum: int, n: int) -> list[Rollout]:
    """Returns a recorded group; UserError if its prompt or its size is another."""
    row = self._written[id]
    if (row["prompt"], len(row["rollouts"])) != (checksum, n):
      raise UserError(
        f"{self.path} has responses for {id!r} to another prompt: the problems or the prompts have"
        " changed since; give another --output"
      )
    return list(map(_as_rollout, row["rollouts"]))


def _as_row(rollout: Rollout) -> dict:
  """Returns a rollout as JSON values."""
  row = dataclasses.asdict(rollout)
  # Only training needs exact log-probs, and a journal is not used in training: five decimals keep
  # the file small.
  row["sampler_logprobs"] = [round(logprob, 5) for logprob in rollout.sampler_logprobs]
  return row


def _as_rollout(row: dict) -> Rollout:
  """Returns the rollout of a row; JSON turned its tuples into lists."""
  # Tuples, as the engines return them, so that a replayed rollout equals a new one.
  arrays = {key: tuple(row[key]) for key in ("token_ids", "sampler_logprobs")}
  return Rollout(**row | arrays)


def _checksum(prompt: Prompt) -> int:
  """Returns a checksum of the prompt's tokens, little-endian so that machines agree."""
  return zlib.crc32(np.array(prompt.token_ids, "<i4").tobytes())
