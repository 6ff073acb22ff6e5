"""Solves instances in the settings oracle and end_to_end: from instances to predictions.

A setting's folder:

  prompts.jsonl              every prompt: instance_id, stage, messages, tokens
  localize.rollouts.jsonl    every response with its tokens, written when it is sampled
  repair.rollouts.jsonl      (evals.journal)
  locations.jsonl            end_to_end: instance_id, response, files, lenient, and whether the gold
                             files are among them
  repairs.jsonl              a line per instance: files shown and left out, the samples with the
                             outcomes of their edits, the chosen patch or why it is empty
  predictions.jsonl          SWE-bench's own form, a line per instance
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from srl_jax import folders
from srl_jax.data.responses import outside_think_blocks
from srl_jax.data.tokenizer import EncodedPrompt
from srl_jax.evals.journal import Journal
from srl_jax.evals.swe import edits, patches, prompting, repositories
from srl_jax.evals.swe.instances import Instance
from srl_jax.rollout.engine import Engine, Prompt, Rollout, SamplingParams

ORACLE, END_TO_END = "oracle", "end_to_end"
SETTINGS = (ORACLE, END_TO_END)
LOCALIZE, REPAIR = "localize", "repair"


@dataclasses.dataclass(frozen=True)
class Solver:
  """How instances are solved.

  Attributes:
    engine: samples responses.
    encode: messages -> tokens.
    words: the prompts.
    clones: folder of the bare clones.
    params: max_tokens and seed of every response; the temperature applies to several samples.
    samples: per repair; 1 means greedy decoding. Localisation is one greedy response.
    max_prompt_tokens: limit of any prompt.
    name: the model's name in predictions.jsonl.
    progress: called with a stage's name and the number of its responses so far.
  """

  engine: Engine
  encode: Callable[[list[dict[str, str]]], EncodedPrompt]
  words: prompting.Wording
  clones: pathlib.Path
  params: SamplingParams
  samples: int
  max_prompt_tokens: int
  name: str
  progress: Callable[[str, int], None]


@dataclasses.dataclass(frozen=True)
class Request:
  """An instance with its repair prompt, or with the reason why there is none."""

  instance: Instance
  packed: prompting.Packed
  reason: str


def solve(solver: Solver, setting: str, found: Sequence[Instance], folder: pathlib.Path) -> None:
  """Solves all instances in a setting and writes its folder; recorded responses are reused."""
  folder.mkdir(parents=True, exist_ok=True)
  named, prompts = None, []
  if setting == END_TO_END:
    named, prompts = _localize(solver, found, folder)
  requests = [_request(solver, instance, named) for instance in found]
  for request in requests:
    packed = request.packed
    if packed.prompt:
      prompts.append(_prompt_line(request.instance, REPAIR, packed.messages, packed.prompt))
  # Written before sampling, so that prompts can be inspected meanwhile.
  _write(folder / "prompts.jsonl", prompts)
  groups = _sample(solver, folder, REPAIR, _prompts(requests), solver.samples)
  lines = [_repair(request, groups.get(request.instance.id, [])) for request in requests]
  _write(folder / "repairs.jsonl", lines)
  _write(folder / "predictions.jsonl", [_prediction(line, solver.name) for line in lines])


def _write(path: pathlib.Path, lines: Sequence[dict]) -> None:
  """Writes JSON lines in ASCII.

  The harness splits files by str.splitlines, which also splits at some non-ASCII characters in
  texts.
  """
  folders.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _prediction(line: dict, name: str) -> dict[str, str]:
  """Returns a line of predictions.jsonl; an empty patch is an empty prediction."""
  patch = line["patch"]
  return {"instance_id": line["instance_id"], "model_name_or_path": name, "model_patch": patch}


def _prompts(requests: Sequence[Request]) -> list[Prompt]:
  """Returns the prompts of the requests that have one."""
  prompts = []
  for request in requests:
    if request.packed.prompt:
      prompts.append(Prompt(request.instance.id, tuple(request.packed.prompt.token_ids)))
  return prompts


def _prompt_line(instance: Instance, stage: str, messages, encoded: EncodedPrompt) -> dict:
  """Returns a line of prompts.jsonl."""
  tokens = len(encoded.token_ids)
  return {"instance_id": instance.id, "stage": stage, "tokens": tokens, "messages": messages}


def _sample(
  solver: Solver, folder: pathlib.Path, stage: str, prompts: list[Prompt], n: int
) -> dict[str, list[Rollout]]:
  """Returns {instance id: its responses}; a single one by greedy decoding, several by sampling."""
  show = lambda count: solver.progress(f"{folder.name} {stage}", count)
  journal = Journal(solver.engine, folder / f"{stage}.rollouts.jsonl", show)
  temperature = solver.params.temperature if n > 1 else 0.0
  params = dataclasses.replace(solver.params, temperature=temperature)
  return {group[0].prompt_id: group for group in journal.sample(prompts, n, params)}


# ---------------------------------------------------------------------------------- localisation


def _localize(
  solver: Solver, found: Sequence[Instance], folder: pathlib.Path
) -> tuple[dict[str, list[str]], list[dict]]:
  """Returns ({instance id: files to change}, lines of prompts.jsonl); writes locations.jsonl."""
  # First all prompts, so that they are sampled in one batch; a tree that is too long has none.
  names, encoded, lines = {}, {}, []
  for instance in found:
    repository = repositories.open_repository(solver.clones, instance.repo, instance.base_commit)
    names[instance.id] = repositories.source_names(repository.names(), instance.repo)
    tree = repositories.tree(names[instance.id])
    messages = solver.words.localize_messages(instance.issue, tree)
    prompt = solver.encode(messages)
    if len(prompt.token_ids) <= solver.max_prompt_tokens:
      encoded[instance.id] = prompt
      lines.append(_prompt_line(instance, LOCALIZE, messages, prompt))
  prompts = [Prompt(id, tuple(prompt.token_ids)) for id, prompt in encoded.items()]
  groups = _sample(solver, folder, LOCALIZE, prompts, 1)
  # Then a line per instance, including those without a response.
  named, locations = {}, []
  for instance in found:
    location: dict[str, Any] = {"instance_id": instance.id, "too_long": instance.id not in encoded}
    files, lenient, response = [], 0, ""
    if instance.id in encoded:
      response = groups[instance.id][0].text
      answer = _answer(response, encoded[instance.id])
      files, lenient = prompting.named_files(answer, names[instance.id])
    # For the recall of localisation; the policy does not see the gold files.
    gold = instance.gold_files()
    location |= {"response": response, "files": files, "lenient": lenient, "gold": gold}
    location |= {"all_found": set(gold) <= set(files), "any_found": bool(set(gold) & set(files))}
    locations.append(location)
    named[instance.id] = files
  _write(folder / "locations.jsonl", locations)
  return named, lines


def _answer(text: str, prompt: EncodedPrompt) -> str:
  """Returns a response without its think blocks."""
  return outside_think_blocks(text, think_opened=prompt.think_opened)


# ---------------------------------------------------------------------------------- repair


def _request(solver: Solver, instance: Instance, named: dict[str, list[str]] | None) -> Request:
  """Returns an instance's repair prompt, with its gold files or those that localisation named."""
  # named is None in the oracle setting.
  paths = instance.gold_files() if named is None else named[instance.id]
  repository = repositories.open_repository(solver.clones, instance.repo, instance.base_commit)
  packed = prompting.pack(
    instance.issue, paths, repository.read, solver.words, solver.encode, solver.max_prompt_tokens
  )
  reason = ""
  if packed.prompt is None:
    # NO_FILE: none of the named files exists and is UTF-8, or none was named.
    too_long = any(why.startswith("too long") for why in packed.left_out.values())
    reason = patches.TOO_LONG if too_long else patches.NO_FILE
  return Request(instance, packed, reason)


def _repair(request: Request, rollouts: Sequence[Rollout]) -> dict:
  """Returns a line of repairs.jsonl: all samples, and the patch chosen by vote."""
  packed, samples, forms = request.packed, [], []
  for rollout in rollouts:
    sample, form = _sample_outcome(packed, rollout)
    samples.append(sample)
    forms.append(form)
  chosen = patches.vote(forms)
  patch = samples[chosen]["patch"] if chosen is not None else ""
  reason = ""
  if chosen is None:
    # The reason of the sample that reached the latest stage.
    reasons = [sample["reason"] for sample in samples] or [request.reason]
    reason = max(reasons, key=patches.EMPTY_REASONS.index)
  return {
    "instance_id": request.instance.id,
    "files": list(packed.shown),
    "left_out": packed.left_out,
    "prompt_tokens": len(packed.prompt.token_ids) if packed.prompt else 0,
    "samples": samples,
    "chosen": chosen,
    "reason": reason,
    "patch": patch,
    "touches": patches.touches(patch),
  }


def _sample_outcome(packed: prompting.Packed, rollout: Rollout) -> tuple[dict, tuple | None]:
  """Returns (a response with the outcomes of its edits, normal form of its patch or None)."""
  found = edits.parse(_answer(rollout.text, packed.prompt))
  changed, outcomes = edits.apply(found, packed.shown)
  cut_off = rollout.finish_reason != "stop"
  reason = _empty_reason(packed.shown, changed, outcomes, cut_off)
  patch, form = "", None
  if not reason:
    old = {path: packed.shown[path] for path in changed}
    # The paths that changed, before and after, as bytes for git.
    encoded = ({path: text.encode() for path, text in side.items()} for side in (old, changed))
    patch, form = patches.diff(*encoded).decode(), patches.normal_form(old, changed)
  sample = {
    "response": rollout.text,
    "tokens": len(rollout.token_ids),
    "cut_off": cut_off,
    "edits": [dataclasses.asdict(outcome) for outcome in outcomes],
    "reason": reason,
    "patch": patch,
  }
  return sample, form


def _empty_reason(shown, changed, outcomes: Sequence[edits.Outcome], cut_off: bool) -> str:
  """Returns why a response gives no patch, "" if it gives one."""
  # A truncated response still counts if one of its complete edits applies.
  if not changed:
    well_formed = any(outcome.outcome not in edits.MALFORMED for outcome in outcomes)
    if well_formed:
      return patches.NOT_APPLIED
    return patches.CUT_OFF if cut_off else patches.NO_EDIT
  # Code that does not parse rejects the whole patch; blank lines only if nothing else changes.
  refusals = [patches.refusal(path, shown[path], text) for path, text in changed.items()]
  if patches.SYNTAX in refusals:
    return patches.SYNTAX
  return patches.BLANK_LINES if all(refusals) else ""
