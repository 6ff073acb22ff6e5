"""Sentences about what is wrong in a run, each from numbers that the page shows too."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from srl_jax.reporting.reading import RunFiles

# Limits from docs/metrics.md.
DROPPED, MALFORMED, TRUNCATED, GAP, REPEATS = 0.5, 0.2, 0.05, 1.05, 0.7
ENTROPY_LEFT = 0.05  # share of the entropy of the first steps
HEADER = 0.9  # share of the policy's mean reward that a title alone may get
OVERFIT = 0.03  # by which the last validation may be below the best
LOOPS = 0.05


def findings(run: RunFiles, audit: Mapping[str, Any] | None) -> list[str]:
  """Returns a sentence for each thing that looks wrong, the reward's own first.

  Args:
    run: with its metrics.
    audit: from reporting.audit, or None.
  """
  steps = [line for line in run.metrics if line["step"] > 0]
  found = []
  if audit:
    found += [check(run.config, audit) for check in _OF_AUDIT]
  found += [check(run.config, steps) for check in _OF_METRICS]
  return [sentence for sentence in found if sentence]


# ---------------------------------------------------------------------------------- the audit


def _low_std(config: Mapping, audit: Mapping) -> str | None:
  dropped = audit["dropped"].get("low_std", 0) / audit["groups"]
  epsilon, median = audit["epsilon"], audit["spreads"]["median"]
  if dropped < DROPPED or epsilon is None:
    return None
  sentence = f"{dropped:.0%} of the groups were dropped for low_std: epsilon {epsilon:g} is"
  if median == 0:
    return (
      f"{sentence} not the cause, half of the groups have {config.get('rollout.samples', 8)} equal"
      " rewards; raise rollout.temperature, or give data that the model does not know already"
    )
  # The greatest smaller value that would keep at least half of the groups.
  smaller = [(e, share) for e, share in audit["kept_by_epsilon"] if e < epsilon and share >= 0.5]
  remedy = ""
  if smaller and median <= epsilon:
    other, share = smaller[-1]
    remedy = f"; {other:g} would keep {share:.0%}"
  return f"{sentence} above the spread of most of them (median {median:.3f}){remedy}"


def _nothing_to_learn(config: Mapping, audit: Mapping) -> str | None:
  for reason, why in _REASONS.items():
    share = audit["dropped"].get(reason, 0) / audit["groups"]
    if share >= DROPPED:
      return f"{share:.0%} of the groups were dropped for {reason}: {why}"
  return None


_REASONS = {
  "all_failed": "every response is malformed; docs/form.md has the remedies",
  "all_wrong": "no response is right; give easier problems, or start from a better policy",
  "all_right": "every response is right already; give harder problems",
}


def _header_pays(config: Mapping, audit: Mapping) -> str | None:
  header, policy = audit["header"], audit["mean"]
  if not header or policy is None or header["mean"] < HEADER * policy:
    return None
  return (
    f"an action of only the step's number and title (or the call's name) gets"
    f" {header['mean']:.2f}, and the policy gets {policy:.2f}: the reward hardly pays for"
    " the rest of the step; data.title_hint takes the title out of the target"
  )


def _collapse(config: Mapping, audit: Mapping) -> str | None:
  last = audit["repeats"][-max(1, len(audit["repeats"]) // 4) :]
  share = sum(period["actions"] for period in last) / len(last)
  if share < REPEATS:
    return None
  return (
    f"in the last quarter {share:.0%} of the actions repeat another one of their group: the policy"
    " has become certain, and few groups teach it; raise rollout.temperature or give new data"
  )


def _loops(config: Mapping, audit: Mapping) -> str | None:
  loops = audit["loops"]
  if loops["share"] < LOOPS:
    return None
  return f"{loops['share']:.0%} of the monologues repeat their own words over and over"


# ---------------------------------------------------------------------------------- the metrics


def _mean(steps: Sequence[Mapping[str, float]], name: str) -> float | None:
  """Returns a metric's mean over the last quarter of the steps that have it, or None."""
  values = [step[name] for step in steps if name in step]
  return float(np.mean(values[-max(1, len(values) // 4) :])) if values else None


def _malformed(config: Mapping, steps: Sequence[Mapping]) -> str | None:
  share = _mean(steps, "format_failures")
  if share is None or share < MALFORMED:
    return None
  last = steps[-max(1, len(steps) // 4) :]
  counts: dict[str, float] = {}
  for step in last:
    for name, count in step.items():
      if name.startswith("failure_"):
        counts[name] = counts.get(name, 0.0) + count
  reason = max(counts, key=counts.get).removeprefix("failure_") if counts else "unknown"
  return (
    f"{share:.0%} of the responses of the last quarter are malformed, mostly {reason}:"
    " docs/form.md has the remedies"
  )


def _truncated(config: Mapping, steps: Sequence[Mapping]) -> str | None:
  share = _mean(steps, "truncated_share")
  if share is None or share < TRUNCATED:
    return None
  limit = config.get("rollout.max_tokens", "unknown")
  return f"{share:.0%} of the responses are cut off: raise rollout.max_tokens, now {limit}"


def _gap(config: Mapping, steps: Sequence[Mapping]) -> str | None:
  gap = max((step.get("logprob_gap_exp", 0.0) for step in steps), default=0.0)
  if gap <= GAP:
    return None
  return (
    f"the engine's log-probs differ from the trainer's by a factor of up to {gap:.3f} a token:"
    " serve in the type of config.dtype"
  )


def _certain(config: Mapping, steps: Sequence[Mapping]) -> str | None:
  values = [step["entropy"] for step in steps if "entropy" in step]
  if len(values) < 20 or config.get("method") == "sft":
    return None
  first, last = np.mean(values[:5]), np.mean(values[-5:])
  if last > ENTROPY_LEFT * first:
    return None
  return f"the entropy fell from {first:.3f} to {last:.4f} nats a token: nothing is explored"


def _overfit(config: Mapping, steps: Sequence[Mapping]) -> str | None:
  for name in ("validation_accuracy", "validation_reward"):
    found = [(step[name], int(step["step"])) for step in steps if name in step]
    if found:
      best, last = max(found), found[-1]
      if last[0] < best[0] - OVERFIT:
        return (
          f"{name} was {best[0]:.3f} at step {best[1]} and is {last[0]:.3f} at step {last[1]}:"
          " export and evaluate take the best step"
        )
      return None
  return None


def _not_full(config: Mapping, steps: Sequence[Mapping]) -> str | None:
  size = config.get("batch.prompts")
  if not isinstance(size, int) or config.get("method") == "sft":
    return None
  kept = [step["groups_kept"] for step in steps if "groups_kept" in step]
  short = sum(count < size for count in kept)
  if not kept or short < 0.1 * len(kept) or not config.get("algorithm.dynamic_sampling", True):
    return None
  return (
    f"{short} of {len(kept)} steps trained on fewer than batch.prompts={size} groups: more"
    " algorithm.max_rounds, a smaller algorithm.std_epsilon or other data"
  )


def _compiled_late(config: Mapping, steps: Sequence[Mapping]) -> str | None:
  late = [int(s["step"]) for s in steps if s["step"] > 2 and s.get("programs_compiled", 0) > 0]
  # A run that continues compiles again at its first step.
  if len(late) < 3:
    return None
  return f"programs were compiled in {len(late)} steps after step 2, last in step {late[-1]}"


_OF_AUDIT: Sequence[Callable] = (_low_std, _nothing_to_learn, _header_pays, _collapse, _loops)
_OF_METRICS: Sequence[Callable] = (
  *(_malformed, _truncated, _not_full, _overfit, _certain, _gap, _compiled_late),
)
