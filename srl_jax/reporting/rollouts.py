"""Reads the groups of a run: a few numbers of every group, texts of a sample of them.

A run may have written gigabytes. Of its files of rollouts, evenly spaced ones are read, at most
`limit` bytes in all; which ones depends on their sizes alone.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from srl_jax.data.responses import CLOSE, OPEN, monologues
from srl_jax.reporting.reading import Faults, RunFiles, is_finite, parse_object, raw_lines
from srl_jax.rewards.spread import population_std

LIMIT = 400_000_000  # bytes of rollouts that a page reads, of all its runs together
# Lists of a group's line with one entry for each response.
_PER_RESPONSE = ("texts", "actions", "rewards", "failures")


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
  """The numbers of a group, and the place of its line.

  Attributes:
    step, number: of the step that sampled it, and its place among the step's groups, from 1.
    path, offset: of its line.
    id: of the prompt.
    dropped: the reason, or None for a group that was trained on.
    rewards: of its responses.
    formed: rewards of the well-formed ones.
    spread: population standard deviation of the rewards.
    step_index: number of the expert's step that is the target, from 1; 0 for a whole solution.
    target_length: characters.
    actions: number of different actions; malformed responses have none, and count as different.
    monologues: number of different monologues; missing ones are different.
  """

  step: int
  number: int
  path: pathlib.Path
  offset: int
  id: str
  dropped: str | None
  rewards: tuple[float, ...]
  formed: tuple[float, ...]
  spread: float
  step_index: int
  target_length: int
  actions: int
  monologues: int

  @property
  def mean(self) -> float:
    return sum(self.rewards) / len(self.rewards)


@dataclasses.dataclass
class Groups:
  """The groups of a run that were read.

  Attributes:
    groups: by step, then by number.
    steps, steps_read: number of steps with rollouts, and how many of them were read.
    faults: a sentence for each part that could not be read.
  """

  groups: list[Group]
  steps: int
  steps_read: int
  faults: list[str]


def read_groups(run: RunFiles, limit: int = LIMIT) -> Groups:
  """Returns the groups of a run, of at most about `limit` bytes of its files."""
  faults = Faults()
  chosen = evenly_within(run.rollouts, limit)
  groups, read = [], Counter()  # bytes of each step
  for step, path in chosen:
    for number, line, offset in raw_lines(path, faults):
      read[step] += len(line)
      if read[step] > limit:  # a single step may be larger than all that may be read
        break
      found = parse_object(line)
      fault = why_damaged(found)
      if fault:
        faults.add(f"rollouts/{path.name}", f"line {number} {fault} and is left out")
      else:
        # A process has only a part of the step's groups; older runs have no index.
        index = found.get("group")
        number = index + 1 if isinstance(index, int) and index >= 0 else number
        groups.append(_group(found, step, number, path, offset))
  groups.sort(key=lambda group: (group.step, group.number))
  steps, steps_read = (len({step for step, _ in files}) for files in (run.rollouts, chosen))
  return Groups(groups, steps, steps_read, faults.all())


def evenly_within(
  files: Sequence[tuple[int, pathlib.Path]], limit: int
) -> list[tuple[int, pathlib.Path]]:
  """Returns the files of every k-th step, the last one included, with the least k for which `limit`
  holds. A step has a file of each process of its run.
  """
  total = sum(_size(path) for _, path in files)
  k = max(1, -(-total // limit))  # rounded up
  chosen = set(sorted({step for step, _ in files})[::-1][::k])
  return [(step, path) for step, path in files if step in chosen]


def _size(path: pathlib.Path) -> int:
  try:
    return path.stat().st_size
  except OSError:  # removed while this page is written: a run that starts again cuts files back
    return 0


def why_damaged(line: dict[str, Any] | None) -> str | None:
  """Returns what is wrong with a group's line, or None if every part of it can be shown."""
  if line is None:
    return "is damaged"
  lists = [line.get(key) for key in _PER_RESPONSE]
  if not all(isinstance(part, list) and part for part in lists):
    return "has no responses"
  if len(set(map(len, lists))) > 1:
    return "has lists of different lengths"
  if not all(is_finite(reward) for reward in line["rewards"]):
    return "has a reward that is not a finite number"
  texts = [*line["texts"], *line["actions"], line.get("target"), line.get("problem")]
  texts += [line.get("prompt_id"), *filter(None, [*line["failures"], line.get("dropped")])]
  context = line.get("context")
  if not isinstance(context, list) or not all(isinstance(x, str) for x in [*texts, *context]):
    return "has a part that is not a text"
  return None


def _group(line: dict[str, Any], step: int, number: int, path, offset: int) -> Group:
  """Returns the numbers of a group's line."""
  rewards = tuple(map(float, line["rewards"]))
  formed, actions = [], []
  for reward, failure, action in zip(rewards, line["failures"], line["actions"]):
    if failure is None:
      formed.append(reward)
      actions.append(action)
  return Group(
    step=step,
    number=number,
    path=path,
    offset=offset,
    id=line["prompt_id"],
    dropped=line.get("dropped"),
    rewards=rewards,
    formed=tuple(formed),
    spread=population_std(rewards),
    step_index=step_index(line["prompt_id"]),
    target_length=len(line["target"]),
    actions=len(set(actions)) + len(rewards) - len(actions),
    monologues=_different(list(map(monologue, line["texts"], line["actions"]))),
  )


def step_index(prompt_id: str) -> int:
  """Returns k of the id `problem/k` of an example (data.examples); 0 for a whole solution."""
  _, slash, end = prompt_id.rpartition("/")
  return int(end) if slash and end.isdecimal() and len(end) < 6 else 0


def monologue(text: str, action: str) -> str:
  """Returns the contents of a response's think blocks, an unclosed last one included.

  Rollouts do not record whether the prompt opened a think block. It did if the first tag is a close
  tag, or if there is no tag and yet no action, as in a response that was cut off.
  """
  if OPEN not in text and CLOSE not in text:
    return "" if action else text.strip()
  opened = CLOSE in text.partition(OPEN)[0]
  return "\n".join(monologues(text, think_opened=opened))


def _different(monologues_of_group: Sequence[str]) -> int:
  """Returns the number of different monologues; missing ones are not called equal."""
  missing = sum(not found for found in monologues_of_group)
  return len(set(monologues_of_group) - {""}) + missing


def lines_of(groups: Sequence[Group]) -> Iterator[tuple[Group, dict[str, Any]]]:
  """Yields each group with its whole line, read again; one that has changed since is left out."""
  path, file = None, None
  try:
    for group in sorted(groups, key=lambda group: (group.step, group.number)):
      if group.path != path:
        if file:
          file.close()
        path, file = group.path, _open(group.path)
      if file is None:
        continue
      file.seek(group.offset)
      line = parse_object(file.readline())
      if not why_damaged(line) and line["prompt_id"] == group.id:
        yield group, line
  finally:
    if file:
      file.close()


def _open(path: pathlib.Path):
  try:
    return path.open("rb")
  except OSError:
    return None
