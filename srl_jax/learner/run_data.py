"""The data of a run: a checkpoint has its fingerprint, and a restart with other data is refused.

The queue of a checkpoint holds indices of examples. With other examples these indices would select
other prompts, and problems that were held out before could be trained on.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

from srl_jax.data import rows
from srl_jax.data.examples import Examples, StepExample, normalized
from srl_jax.errors import UserError
from srl_jax.learner.checkpoint import Progress
from srl_jax.rollout.prompt_set import PromptSet

# Parts of a fingerprint, and their wording in a refusal.
PARTS = {
  "train": "the examples to train on",
  "held_out": "the held-out examples",
  "prompts": "the tokenizer, its chat template or the system prompt",
}


def old_hold_out(config, before: dict | None, examples: Examples) -> Examples:
  """Returns the examples, with the problems held out that the run has held out so far.

  This is done if data.accept_change is set, or was when the checkpoint was written; otherwise the
  examples are returned unchanged. Raises UserError if no held-out problem or no other one is left.

  Args:
    before: `fingerprint` of the checkpoint, or None.
  """
  if before is None or not (config.data.accept_change or before["accepted"]):
    return examples
  ids = set(before["held_out_ids"])
  if not ids:
    return examples
  # By text too: the data may have a held-out problem under a second id.
  everything = examples.train + examples.validation
  texts = {normalized(example.problem) for example in everything if example.problem_id in ids}
  train, held_out = [], []
  for example in everything:
    is_held_out = example.problem_id in ids or normalized(example.problem) in texts
    (held_out if is_held_out else train).append(example)
  if not train or not held_out:
    raise UserError(
      f"data.accept_change: of {len(ids)} problems that were held out {len(texts)} are in the data,"
      f" and {len(train)} examples to train on are left; give data with the same problem ids, or"
      " another --workdir"
    )
  return dataclasses.replace(examples, train=train, validation=held_out)


def fingerprint(
  config, before: dict | None, examples: Examples, train: PromptSet, held_out: PromptSet, folder
) -> dict:
  """Returns the fingerprint of the run's data for its checkpoints, plain JSON.

  Args:
    before: that of the checkpoint which is continued, or None.
    examples: all examples.
    train, held_out: those with prompts that fit.
    folder: of the model; its tokenizer.json is a part of the prompts.
  """
  prompts = hashlib.blake2b((pathlib.Path(folder) / "tokenizer.json").read_bytes())
  # The first prompt shows a change of the chat template or of the system prompt.
  prompts.update(repr(train.prompt(0).token_ids).encode())
  accepted = bool(before and (config.data.accept_change or before["accepted"]))
  return {
    "train": _digest(train.examples),
    "held_out": _digest(held_out.examples),
    "prompts": prompts.hexdigest()[:32],
    "sizes": [len(train.examples), len(held_out.examples)],
    "held_out_ids": sorted({example.problem_id for example in examples.validation}),
    "revision": rows.hub_revision(config.data.path) if config.data.source == "hub" else "",
    "accepted": accepted,
  }


def check(config, place, before: dict | None, now: dict) -> None:
  """Raises UserError if the data has changed since the checkpoint and data.accept_change is unset.

  Args:
    place: the checkpoint's name for the message.
    before, now: `fingerprint` of the checkpoint (None: of a version without) and of this start.
  """
  changed = _changed(before, now)
  if not changed or config.data.accept_change:
    return
  what = " and ".join(PARTS[part] for part in changed)
  sizes = f"{before['sizes'][0]} and {before['sizes'][1]} held out then, {now['sizes'][0]} and"
  revision = ""
  if before["revision"] != now["revision"]:
    revision = f"; revision {before['revision'] or 'unknown'}, now {now['revision'] or 'unknown'}"
  raise UserError(
    f"{place}: the run's data has changed: {what} ({sizes} {now['sizes'][1]} now{revision}). Give"
    " the data that it began with or another --workdir, or set --config.data.accept_change=True: it"
    " then begins an epoch of the new data and keeps its held-out problems"
  )


def adopt(progress: Progress, now: dict) -> None:
  """Makes `now` the data of a run's progress; indices of other examples leave its queue."""
  queue = progress.queue
  if queue and _changed(progress.data, now):
    # A new epoch of the new examples; the epoch selects the order and the random streams, so one
    # that was begun is not used again.
    begun = bool(queue["position"] or queue["head"])
    progress.queue = dict(epoch=queue["epoch"] + begun, position=0, head=[])
  progress.data = now


def _changed(before: dict | None, now: dict) -> list[str]:
  """The parts that differ."""
  return [part for part in PARTS if before is not None and before[part] != now[part]]


def _digest(examples: Sequence[StepExample]) -> str:
  """A hash of all fields of examples, in their order, because the queue holds indices."""
  digest = hashlib.blake2b(digest_size=16)
  for example in examples:
    digest.update(repr(example).encode("utf-8", "backslashreplace"))
  return digest.hexdigest()
