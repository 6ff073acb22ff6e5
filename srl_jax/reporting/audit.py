"""What the reward measures in a run: distributions, cheap ways to a reward, repetition, extremes.

Everything here is computed from the groups that were read (reporting.rollouts).
"""

import bisect
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from srl_jax.data.solutions import split_steps
from srl_jax.reporting.groups import cut, evenly
from srl_jax.reporting.reading import RunFiles
from srl_jax.reporting.rollouts import Group, lines_of, monologue
from srl_jax.rewards import SIMILARITIES

BINS = 40
PERIODS = 40  # into which a run is divided, for shares over time
EPSILONS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
SAMPLE = 300  # groups of which the texts are read, and targets of which the title is compared
LONGEST = 4_000  # characters of a target whose title is compared
TARGETS = 12  # of which the most and least rewarded actions are shown
ACTIONS = 3  # as many of each
_NUMBER = re.compile(r"\d+")
LOOP_WORDS = 24  # a monologue with fewer words is too short to repeat itself


def audit(run: RunFiles, groups: Sequence[Group]) -> dict[str, Any] | None:
  """Returns the audit of a run's groups as JSON, or None without groups."""
  if not groups:
    return None
  formed = [reward for group in groups for reward in group.formed]
  spreads = [group.spread for group in groups]
  texts = read_texts(groups)
  return {
    "groups": len(groups),
    "responses": sum(len(group.rewards) for group in groups),
    "malformed": 1 - len(formed) / sum(len(group.rewards) for group in groups),
    "rewards": histogram(formed, 0.0, 1.0),
    "mean": round(sum(formed) / len(formed), 5) if formed else None,
    "spreads": histogram(spreads, 0.0, max([0.1, *spreads])),
    "epsilon": epsilon_of(run.config),
    "kept_by_epsilon": kept_by_epsilon(spreads),
    "dropped": dict(Counter(group.dropped for group in groups if group.dropped).most_common()),
    "by_step": by_step_index(groups),
    "by_length": by_target_length(groups),
    "repeats": repeats_over_time(groups),
    "loops": texts["loops"],
    "header": header_only(texts["targets"], str(run.config.get("reward.similarity", "difflib"))),
    "extremes": extremes(groups),
  }


def epsilon_of(config: Mapping[str, Any]) -> float | None:
  """Returns algorithm.std_epsilon, or None if dynamic sampling is off or it is not known."""
  value = config.get("algorithm.std_epsilon")
  on = config.get("algorithm.dynamic_sampling", True)
  return float(value) if on and isinstance(value, int | float) else None


# ---------------------------------------------------------------------------------- distributions


def histogram(values: Sequence[float], low: float, high: float) -> dict[str, Any]:
  """Returns {"edges", "shares", "median"}: BINS bins from low to high, wider if values are beyond.

  The last bin contains its upper edge. Shares add up to 1; without values there are none.
  """
  if not values:
    return {"edges": [], "shares": [], "median": None}
  low, high = min(low, *values), max(high, *values)
  counts, edges = np.histogram(values, BINS, (low, high))
  return {
    "edges": [round(float(edge), 5) for edge in edges],
    "shares": [round(float(count) / len(values), 6) for count in counts],
    "median": round(float(np.median(values)), 6),
  }


def kept_by_epsilon(spreads: Sequence[float]) -> list[list[float]]:
  """Returns [epsilon, share of groups with a greater spread] for each of EPSILONS."""
  ascending = sorted(spreads)
  found = []
  for epsilon in EPSILONS:
    above = len(ascending) - bisect.bisect_right(ascending, epsilon)
    found.append([epsilon, round(above / len(ascending), 6)])
  return found


def by_step_index(groups: Sequence[Group]) -> list[dict[str, float]]:
  """Returns for each number of the expert's step: mean reward of well-formed responses, count."""
  rewards = defaultdict(list)
  for group in groups:
    if group.step_index:
      rewards[group.step_index] += group.formed
  found = []
  for index in sorted(rewards):
    if rewards[index]:
      found.append({"step": index} | _mean_and_count(rewards[index]))
  return found


def by_target_length(groups: Sequence[Group]) -> list[dict[str, float]]:
  """Returns the same for ranges of target lengths, each with at least a tenth of the responses.

  A range has "low" and "high", its shortest and longest target in characters. The last one may have
  fewer responses.
  """
  by_length = defaultdict(list)
  for group in groups:
    by_length[group.target_length] += group.formed
  enough = sum(map(len, by_length.values())) / 10
  found: list[dict[str, float]] = []
  low, rewards = None, []
  for length in sorted(by_length):
    low = length if low is None else low
    rewards += by_length[length]
    if rewards and (len(rewards) >= enough or length == max(by_length)):
      found.append({"low": low, "high": length} | _mean_and_count(rewards))
      low, rewards = None, []
  return found


def _mean_and_count(rewards: Sequence[float]) -> dict[str, float]:
  return {"mean": round(sum(rewards) / len(rewards), 5), "count": len(rewards)}


# ---------------------------------------------------------------------------------- repetition


def repeats_over_time(groups: Sequence[Group]) -> list[dict[str, float]]:
  """Returns for PERIODS parts of the run the shares of repeated actions and monologues.

  A response repeats if an earlier one of its group is equal: (responses - different ones) /
  responses. "step" is the last one of the period.
  """
  found = []
  for part in np.array_split(np.arange(len(groups)), min(PERIODS, len(groups))):
    of_part = [groups[i] for i in part]
    responses = sum(len(group.rewards) for group in of_part)
    actions = responses - sum(group.actions for group in of_part)
    monologues = responses - sum(group.monologues for group in of_part)
    found.append(
      {
        "step": of_part[-1].step,
        "actions": round(actions / responses, 5),
        "monologues": round(monologues / responses, 5),
      }
    )
  return found


def repeats_itself(text: str) -> bool:
  """Returns whether fewer than half of a text's runs of four words are different ones."""
  words = text.split()
  if len(words) < LOOP_WORDS:
    return False
  runs = list(zip(words, words[1:], words[2:], words[3:]))
  return 2 * len(set(runs)) < len(runs)


# ---------------------------------------------------------------------------------- texts


def read_texts(groups: Sequence[Group]) -> dict[str, Any]:
  """Returns of a sample of SAMPLE groups: "loops", the share of monologues that repeat
  themselves, with their number, and "targets", the different targets.
  """
  loops = count = 0
  targets: dict[str, None] = {}
  for _, line in lines_of(evenly(groups, SAMPLE)):
    targets[line["target"].strip()] = None
    for text, action in zip(line["texts"], line["actions"]):
      loops += repeats_itself(monologue(text, action))
      count += 1
  return {
    "loops": {"share": round(loops / count, 5) if count else 0.0, "count": count},
    "targets": list(targets),
  }


def header(target: str) -> str | None:
  """Returns the number and the title of a step, or a call's name; None if `target` has neither."""
  if target.startswith("<function="):
    name, end, rest = target.partition(">")
    return f"{name}{end}\n</function>" if end and rest else None
  # split_steps reads steps from number 1 on, and a target is any step of its solution.
  for step in split_steps(_NUMBER.sub("1", target, count=1))[:1]:
    if step.title is not None and step.body and target.endswith(step.body):
      return target.removesuffix(step.body).strip()
  return None


def header_only(targets: Iterable[str], measure: str = "difflib") -> dict[str, Any] | None:
  """Returns the mean reward of an action with only the `header` of its target, and their number.

  None without such targets, or for a measure (reward.similarity) of the user's own.
  """
  pairs = []
  for target in targets:
    written = header(target) if len(target) <= LONGEST else None
    if written:
      pairs.append((written, target))
  if not pairs or measure not in SIMILARITIES:
    return None
  rewards = SIMILARITIES[measure](pairs)
  return {"mean": round(sum(rewards) / len(rewards), 5), "targets": len(rewards)}


def extremes(groups: Sequence[Group]) -> list[dict[str, Any]]:
  """Returns the most and least rewarded different actions for the targets met most often.

  Each has "id", "target", "count" (responses), "most" and "least", lists of [reward, action].
  """
  by_id = defaultdict(list)
  for group in groups:
    by_id[group.id].append(group)
  # Of equally frequent targets the ones with the widest rewards.
  width = lambda met: max(max(g.rewards) for g in met) - min(min(g.rewards) for g in met)
  frequent = sorted(by_id.values(), key=lambda met: (-len(met), -width(met), met[0].id))[:TARGETS]
  wanted = [group for met in frequent for group in evenly(met, 16)]
  lines = defaultdict(list)
  for group, line in lines_of(wanted):
    lines[group.id].append(line)
  return [_extremes_of(id, lines[id]) for id in sorted(lines)]


def _extremes_of(id: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns an entry of `extremes` for one target."""
  rewards: dict[str, float] = {}
  count = 0
  for line in lines:
    count += len(line["actions"])
    for action, reward in zip(line["actions"], line["rewards"]):
      rewards.setdefault(action, float(reward))
  ordered = sorted(rewards.items(), key=lambda found: (-found[1], found[0]))
  shown = [[round(reward, 6), cut(action, 1500)] for action, reward in ordered]
  least = shown[ACTIONS:][-ACTIONS:]  # none twice
  target = cut(lines[0]["target"].strip(), 1500)
  return {
    "id": cut(id, 200),
    "target": target,
    "count": count,
    "most": shown[:ACTIONS],
    "least": least,
  }
