"""An engine that records what another one samples, so that nothing is sampled twice.

An evaluation that was cut off continues where it stopped, also in the middle of stepwise episodes:
prompts with recorded responses get those, and only the others are sampled.
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
  """A rollout engine (rollout.engine.Engine) that keeps the groups of another one in a file.

  The file has a line for each prompt: prompt_id, prompt (a checksum of its tokens) and rollouts.

  Args:
    engine: samples what the file does not hold; its weights are loaded and it is closed by others.
    path: the file; it is created, or continued (a line that was cut off is removed).
    progress: called after each group with the number of responses so far.
  """

  def __init__(self, engine: Engine, path: pathlib.Path, progress: Callable[[int], None]):
    self.engine, self.path, self.progress = engine, path, progress
    self.responses = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    self._written = {}
    if folders.cut_to_whole_lines(path):
      for _, row in json_lines(path):
        self._written[row["prompt_id"]] = row

  def sample(
    self, prompts: Sequence[Prompt], n: int, params: SamplingParams
  ) -> Iterator[list[Rollout]]:
    """Engine.sample; UserError where the file holds another prompt's responses under an id."""
    checksums = {prompt.id: _checksum(prompt) for prompt in prompts}
    new = [prompt for prompt in prompts if prompt.id not in self._written]
    for prompt in prompts:
      if prompt.id in self._written:
        yield self._count(self._recall(prompt.id, checksums[prompt.id], n))
    with self.path.open("a", encoding="utf-8") as file:
      for group in self.engine.sample(new, n, params):
        id = group[0].prompt_id
        line = {"prompt_id": id, "prompt": checksums[id], "rollouts": list(map(_as_row, group))}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()  # before the group is used, so that a used one is never sampled again
        yield self._count(group)

  def load_weights(self, model, version: int) -> None:
    raise RuntimeError("Journal.load_weights: its file belongs to one set of weights")

  def close(self) -> None:
    """Nothing: the wrapped engine is its owner's."""

  def _count(self, group: list[Rollout]) -> list[Rollout]:
    self.responses += len(group)
    self.progress(self.responses)
    return group

  def _recall(self, id: str, checksum: int, n: int) -> list[Rollout]:
    row = self._written[id]
    if (row["prompt"], len(row["rollouts"])) != (checksum, n):
      raise UserError(
        f"{self.path}: holds other responses for {id!r}, of another prompt: the problems or the"
        " prompts have changed since; give another --output"
      )
    return list(map(_as_rollout, row["rollouts"]))


def _as_row(rollout: Rollout) -> dict:
  row = dataclasses.asdict(rollout)
  # Only training reads log-probs; five decimals keep the file small.
  row["sampler_logprobs"] = [round(logprob, 5) for logprob in rollout.sampler_logprobs]
  return row


def _as_rollout(row: dict) -> Rollout:
  arrays = {key: tuple(row[key]) for key in ("token_ids", "sampler_logprobs")}
  return Rollout(**row | arrays)


def _checksum(prompt: Prompt) -> int:
  return zlib.crc32(np.array(prompt.token_ids, "<i4").tobytes())
