"""Sources of agents' runs, and the examples made of them (paper, 5.3 and Appendix A).

The target of a step is its action. The policy is given the issue and the last (action,
observation) pairs; it thinks in its own words, so the expert's thoughts are left out (supervised
fine-tuning learns them).
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from srl_jax.data import rows
from srl_jax.data.data_config import DataConfig, TrajectoryConfig
from srl_jax.data.examples import ExampleKind, Examples, StepExample, hold_out, normalized
from srl_jax.data.responses import CLOSE, OPEN
from srl_jax.data.thoughts import without_tags
from srl_jax.data.trajectories import AgentStep, read_messages, shorten, split_actions, text_of
from srl_jax.errors import UserError

OBSERVATION = "\n\nOBSERVATION:\n"  # between a call and its result, as SWE-agent writes it
_CALL_END = "</function>"  # of every action, see data.trajectories
_DESCRIPTION = ("<pr_description>\n", "\n</pr_description>")


@dataclasses.dataclass(frozen=True)
class Run:
  """A usable run: its id, the issue (the whole first user message) and its steps."""

  id: str
  issue: str
  steps: list[AgentStep]


def load(data: DataConfig, kind: ExampleKind, *, seed: int) -> Examples:
  """Returns the examples of a source of runs; arguments and errors: `sources.load_examples`."""
  runs, counts = read_runs(data, seed=seed)
  return make_examples(runs, counts, data, kind, seed=seed)


def read_runs(
  data: DataConfig, *, seed: int, progress: rows.Progress | None = None
) -> tuple[list[Run], dict[str, int]]:
  """Returns the usable runs of a source, and counts as in `Examples`.

  Rows are left out and counted as: not_resolved and other_expert (`data.swe`; also
  rows without this column), malformed, no_steps, duplicate (the same run again), not_drawn (beyond
  `data.swe.runs`, which a draw by seed and id decides).

  Raises:
    UserError: rows without the column of messages, one id for two runs, or no usable run.
  """
  counts, runs, complaint = collections.Counter(), {}, ""
  for place, row in rows.read(data.source, data.path, data.split, progress):
    counts["rows"] += 1
    reason = _excluded(row, data.trajectories)
    if not reason:
      try:
        run = _run(row, place, data)
      except _Malformed as error:
        reason, complaint = "malformed", complaint or f"; {error}"
    if not reason and not run.steps:
      reason = "no_steps"
    if not reason and run.id in runs:
      reason = "duplicate"
      if run != runs[run.id]:
        raise UserError(
          f"{place}: the id {run.id!r} already names another run; name a column of unique ids in"
          " data.fields.id, or '' to do without"
        )
    if reason:
      counts[reason] += 1
    else:
      runs[run.id] = run
  if not runs:
    rows_read = counts.pop("rows", 0)
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    raise UserError(
      f"{data.path}: none of {rows_read} rows can be used ({reasons}{complaint}){_hint(counts)}"
    )
  drawn = set(_draw(runs, seed)[: data.trajectories.runs or None])  # 0: all
  counts["not_drawn"] = len(runs) - len(drawn)
  counts["kept"] = len(drawn)
  kept = [run for run in runs.values() if run.id in drawn]
  return kept, dict(+counts)  # `+` drops reasons that count 0


def _hint(counts: collections.Counter) -> str:
  """What lets rows in that the config excludes."""
  remedies = []
  if counts["not_resolved"]:
    remedies.append(
      "column 'resolved' is not true: data.swe.resolved=False (prepare: --noresolved)"
    )
  if counts["other_expert"]:
    remedies.append("column 'model' names another expert: data.swe.expert='' (prepare: --expert=)")
  return f". To use rows whose {'; whose '.join(remedies)}" if remedies else ""


class _Malformed(Exception):
  """A run that cannot be cut into steps."""


def _excluded(row: dict[str, Any], config: TrajectoryConfig) -> str | None:
  """Returns the reason why the config excludes a row's run, if there is one."""
  if config.resolved and row.get("resolved") is not True:
    return "not_resolved"
  if config.expert and row.get("model") != config.expert:
    return "other_expert"
  return None


def _run(row: dict[str, Any], place: str, data: DataConfig) -> Run:
  """Returns a row's run."""
  fields = data.fields
  for field in ("solution", "id") if fields.id else ("solution",):
    column = getattr(fields, field)
    if column not in row:
      raise UserError(
        f"{place}: no field {column!r}, which data.fields.{field} names (prepare:"
        f" --fields={field}=...); the row has {', '.join(map(repr, row))}"
      )
  try:
    messages = read_messages(row[fields.solution])
    issue = _first_user_text(messages).strip()
    steps = split_actions(messages)
    texts = [issue]
    for step in steps:
      texts += [step.thought, step.action, step.observation or ""]
    digest = _digest("\0".join(texts))  # raises for half a character (a lone surrogate)
  except ValueError as error:
    raise _Malformed(f"{place}: {error}") from error
  if not issue:
    raise _Malformed(f"{place}: no message of the user, which holds the issue")
  id = _id(row[fields.id], place) if fields.id else digest.hex()[:12]
  return Run(id, issue, steps)


def _id(value: Any, place: str) -> str:
  if not isinstance(value, str | int | float):
    raise _Malformed(f"{place}: its id is a {type(value).__name__}, neither a text nor a number")
  try:
    f"{value}".encode()
  except UnicodeEncodeError as error:  # half a character
    raise _Malformed(f"{place}: its id is no valid text ({error})") from error
  return f"{value}"


def _first_user_text(messages: Sequence[dict[str, Any]]) -> str:
  for message in messages:
    if message["role"] == "user":
      return text_of(message)
  return ""


def make_examples(
  runs: list[Run], counts: dict[str, int], data: DataConfig, kind: ExampleKind, *, seed: int
) -> Examples:
  """Returns the examples of `read_runs`' runs; arguments and errors: `sources.load_examples`.

  `data.holdout` whole runs are held out, one each of as many issues; other runs of these issues
  are left out and counted as twin_of_held_out. Of the held-out steps `data.swe.validation_steps`
  are drawn.
  """
  if kind.unit != "steps":
    raise UserError(
      f"method={kind.method!r}: an agent's runs have steps but no final answers; use a method that"
      " learns steps (srl or sft)"
    )
  if data.title_hint:
    raise UserError("data.title_hint=True: actions have no titles; set it to False")
  examples = []
  for run in runs:
    examples += step_examples(run, kind, data)
  split = hold_out(examples, counts, data.holdout, seed, key=_description)
  held_out = _first_runs(split.validation)
  runs_before, runs_after = _count_runs(split.validation), _count_runs(held_out.values())
  # `hold_out` takes all runs of an issue; one of each is enough to validate on, and the others may
  # not be trained on, as they solve the same issue.
  twins = runs_before - runs_after
  if twins:
    counts = {**counts, "twin_of_held_out": twins, "kept": counts["kept"] - twins}
  drawn = set(_draw(held_out, seed)[: data.trajectories.validation_steps or None])
  validation = [example for id, example in held_out.items() if id in drawn]
  return Examples(split.train, validation, counts)


def _first_runs(examples: list[StepExample]) -> dict[str, StepExample]:
  """{id: example}, of each issue only those of the run with the smallest id."""
  first: dict[str, str] = {}
  for example in examples:
    issue = _description(example.problem)
    first[issue] = min(example.problem_id, first.get(issue, example.problem_id))
  kept = set(first.values())
  return {example.id: example for example in examples if example.problem_id in kept}


def _count_runs(examples: Iterable[StepExample]) -> int:
  return len({example.problem_id for example in examples})


def _description(issue: str) -> str:
  """Returns the part of an issue that identifies it. The instructions around it have versions."""
  begin, end = _DESCRIPTION
  description, closed, _ = issue.partition(begin)[2].partition(end)
  return normalized(description if closed else issue)


def step_examples(run: Run, kind: ExampleKind, data: DataConfig) -> list[StepExample]:
  """Returns a prompt for each step, with the step's action as the target.

  Step k (from 1) has the id `run.id/k` and sees the last `data.swe.pairs` steps before it. Of N
  steps the last is a target only with `data.keep_last_step`. For supervised fine-tuning the target
  is the thought in think tags and then the action, in the form of a response.
  """
  seen = list(map(_pair, run.steps))  # step k is given a slice of these, never its own pair
  examples = []
  for k, step in enumerate(run.steps if data.keep_last_step else run.steps[:-1]):
    answer = f"{OPEN}\n{without_tags(step.thought)}\n{CLOSE}\n{step.action}"
    examples.append(
      StepExample(
        id=f"{run.id}/{k + 1}",
        problem_id=run.id,
        task=kind.task,
        problem=run.issue,
        context=seen[max(0, k - data.trajectories.pairs) : k],
        hint=None,
        target=answer if kind.supervised else step.action,
        answer=None,
      )
    )
  return examples


def _pair(step: AgentStep) -> str:
  """Returns an action and what it showed, as the policy reads them (`shorten_observation`)."""
  shown = "" if step.observation is None else OBSERVATION + step.observation
  return step.action + shown


def shorten_observation(text: str, limit: int, tokenizer) -> str:
  """Returns a text of an example's context, the observation in it cut to `limit` tokens.

  Prompts are cut when they are made, and examples keep whole observations, so that prepared files
  suit every model. A text without an observation (a step of a solution) is returned as it is.
  """
  call, begins, observation = text.partition(_CALL_END + OBSERVATION)
  return call + begins + shorten(observation, limit, tokenizer) if begins else text


def _draw(ids: Iterable[str], seed: int) -> list[str]:
  """Returns ids in an order that only they and the seed decide."""
  return sorted(ids, key=lambda id: _digest(f"{seed}/{id}"))


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()
