"""The groups that a page shows: which ones, and everything that is shown of each.

Which groups are shown depends on the files alone: the best, the worst and the most spread ones,
some of every reason for which groups were dropped, and a sample over time.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from srl_jax.reporting.reading import RunFiles
from srl_jax.reporting.rollouts import Group, lines_of, monologue
from srl_jax.rewards.other_similarities import word_blocks
from srl_jax.rewards.similarity import blocks
from srl_jax.rewards.spread import population_std

COUNT = 500  # groups of a page, of all its runs together
BYTES = 5_000_000  # of their JSON, likewise
EXTREMES = 0.08  # share of the groups that are the best; as many are the worst, and the most spread
OF_A_REASON = 0.08  # share for each reason for which groups were dropped
# Longest texts, in characters. Action and target are compared up to COMPARED characters of both.
MONOLOGUE, PROMPT, COMPARED = 6_000, 6_000, 20_000


def choose(groups: Sequence[Group], count: int) -> dict[Group, list[str]]:
  """Returns {group: why it is shown} of at most `count` groups, the most important ones first.

  Reasons: best, worst, most spread, dropped, sample.
  """
  extremes, of_a_reason = max(1, int(count * EXTREMES)), max(1, int(count * OF_A_REASON))
  # Equal values keep the order of the run, so that the choice is the same every time.
  lists = {
    "best": sorted(groups, key=lambda group: -group.mean)[:extremes],
    "worst": sorted(groups, key=lambda group: group.mean)[:extremes],
    "most spread": sorted(groups, key=lambda group: -group.spread)[:extremes],
  }
  chosen: dict[Group, list[str]] = {}
  for reason in sorted({group.dropped for group in groups if group.dropped}):
    of_reason = [group for group in groups if group.dropped == reason]
    lists[f"dropped: {reason}"] = evenly(of_reason, of_a_reason)
  lists["sample"] = evenly(groups, count)
  # In turn one of each list, so that a page without room for all has some of each.
  for place in range(count):
    for why, listed in lists.items():
      if place < len(listed):
        group = listed[place]
        if group in chosen:
          chosen[group].append(why)
        elif len(chosen) < count:
          chosen[group] = [why]
  return chosen


def evenly(items: Sequence, count: int) -> list:
  """Returns at most `count` of the items: the first, the last and evenly spaced ones between.

  They come in an order in which every beginning is spread over the whole: 0, 1/2, 1/4, 3/4, ...
  """
  if not items:
    return []
  count = min(count, len(items))
  last = max(1, count - 1)
  places = [round(i * (len(items) - 1) / last) for i in range(count)]
  bits = max(1, (count - 1).bit_length())
  # The order of the indices with their binary digits reversed.
  order = sorted(range(count), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
  return [items[places[i]] for i in order]


def shown_groups(
  run: RunFiles, groups: Sequence[Group], count: int = COUNT, limit: int = BYTES
) -> list[dict[str, Any]]:
  """Returns what a page shows of a run's chosen groups, by step.

  Args:
    run: with the settings of reward and advantage.
    groups: all groups of the run that were read.
    count: most groups.
    limit: most bytes of their JSON.
  """
  chosen = choose(groups, count)
  rank = {group: place for place, group in enumerate(chosen)}
  found = {}
  for group, line in lines_of(list(chosen)):
    found[group] = shown(run, group, line, chosen[group])
  kept, size = [], 0
  for group in sorted(found, key=rank.get):  # the most important ones first
    size += len(json.dumps(found[group]))
    if size > limit:
      break
    kept.append(group)
  kept.sort(key=lambda group: (group.step, group.number))
  return [found[group] for group in kept]


def shown(
  run: RunFiles, group: Group, line: Mapping[str, Any], why: Sequence[str]
) -> dict[str, Any]:
  """Returns what a page shows of a group."""
  advantages = [None] * len(group.rewards)
  if group.dropped is None:
    advantages = advantages_of(group.rewards, run.config)
  responses = []
  for i, advantage in enumerate(advantages):
    response = shown_response(run, line, i)
    responses.append(response | {"advantage": _rounded(advantage)})
  return {
    "step": group.step,
    "number": group.number,
    "id": cut(group.id, 200),
    "dropped": group.dropped and cut(group.dropped, 60),
    "task": cut(str(line.get("task") or run.config.get("method", "")), 60),
    "mean": _rounded(group.mean),
    "spread": _rounded(group.spread),
    "why": list(why),
    "problem": cut(line["problem"], PROMPT),
    # The last steps are the nearest to the target.
    "context": cut("\n\n".join(line["context"]), PROMPT, keep_end=True),
    "hint": cut(str(line.get("hint") or ""), 1000),
    "target": cut(line["target"].strip(), COMPARED),
    "responses": responses,
  }


def shown_response(run: RunFiles, line: Mapping[str, Any], i: int) -> dict[str, Any]:
  """Returns what a page shows of response `i` of a group's line.

  `blocks` is a list of [position in the action, position in the target, length], in code points,
  or None where the action was not compared: it is malformed, or too long to show. `is_ratio` is
  whether the reward is 2M/T of these blocks. A run may have another reward: for reward.similarity =
  words the blocks are the matched words, for others they are difflib's.
  """
  action, target = line["actions"][i], line["target"].strip()
  failure, reward = line["failures"][i], float(line["rewards"][i])
  found, is_ratio = None, False
  if failure is None and target and len(action) + len(target) <= COMPARED:
    measure = run.config.get("reward.similarity", "difflib")
    blocks_of = word_blocks if measure == "words" else blocks
    autojunk = bool(run.config.get("reward.autojunk", False))
    found = [list(block) for block in blocks_of(action, target, autojunk=autojunk)]
    matched = sum(size for _, _, size in found)
    equal = abs(2 * matched / (len(action) + len(target)) - reward) < 1e-9
    is_ratio = measure == "difflib" and equal
  return {
    "monologue": cut(monologue(line["texts"][i], action), MONOLOGUE),
    "action": cut(action, COMPARED),
    "reward": reward,
    "failure": failure and cut(failure, 60),
    "blocks": found,
    "is_ratio": is_ratio,
  }


def advantages_of(rewards: Sequence[float], config: Mapping[str, Any]) -> list[float]:
  """Returns the advantages of a group that was trained on, as learner.grpo.group_advantages.

  A = (r - mean) / (std + 1e-6), with the run's settings; std has ddof 0 or 1.
  """
  mean, std = sum(rewards) / len(rewards), population_std(rewards)
  if config.get("algorithm.advantage_scale", "std") == "none":
    return [reward - mean for reward in rewards]
  if config.get("algorithm.advantage_ddof", 0) == 1 and len(rewards) > 1:
    std *= (len(rewards) / (len(rewards) - 1)) ** 0.5
  return [(reward - mean) / (std + 1e-6) for reward in rewards]


def cut(text: str, length: int, *, keep_end: bool = False) -> str:
  """Returns a text of at most about `length` characters, with a mark where some were left out."""
  if len(text) <= length:
    return text
  mark = f"[... {len(text) - length:,} characters are not shown ...]"
  return f"{mark} {text[-length:]}" if keep_end else f"{text[:length]} {mark}"


def _rounded(value: float | None) -> float | None:
  return None if value is None else round(value, 6)
