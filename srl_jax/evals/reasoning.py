r"""Compares how two models reason: words (paper, Figure 4) and think blocks (paper, 5.2).

  python -m srl_jax.evals.reasoning --evaluations=evals/base,evals/srl --labels=base,SRL \
      --output=evals/base_srl

The command reads the responses of srl_jax.evaluate, compares the problems that both evaluations
contain, and writes reasoning.json. The page of a run (srl_jax.report) draws the pictures of a
reasoning.json that is beside it.

The kind of a think block depends on its place, and for verification also on its words:
  planning      no visible text before it
  verification  the last block, after visible text, if it mentions checking or follows an answer
                that is already stated
  between       any other block after visible text
Example 5.2 of the paper has all three; a monolithic response has one block, before its solution.
Blocks between visible text characterise a model only if the prompt does not request one before each
step, which --style=think and --mode=stepwise do: compare evaluations with --style=plain.
Evaluations with different prompts are compared with a note.
"""

import collections
import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from srl_jax import command_line
from srl_jax.data.responses import OPEN
from srl_jax.errors import UserError
from srl_jax.evals import passes, tables
from srl_jax.evals.figures import mean_and_error

flags = command_line.own_flags()
_EVALUATIONS = flags.DEFINE_list(
  "evaluations", None, "Two output folders of srl_jax.evaluate.", required=True
)
_LABELS = flags.DEFINE_list("labels", None, "Their names in the picture (default: the folders').")
_RESPONSES = flags.DEFINE_string(
  "responses", "greedy", "Which responses: greedy, or sampled-K as their files are called."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)

KINDS = ("planning", "between", "verification")
LENGTHS = ("response", "monologue", "solution")
BINS = 30  # of a histogram
# An unclosed block extends to the end of the text.
_BLOCK = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
# Words of a block that verifies.
_CHECKS = re.compile(
  r"\b(?:verif\w*|(?:double-?|re-?)?check(?:s|ed|ing)?|confirm\w*|make sure|sanity"
  r"|plug\w* (?:it )?back)\b",
  re.IGNORECASE,
)
# Visible text that states an answer.
_STATED = re.compile(r"\\boxed\b|\banswer is\b", re.IGNORECASE)


class Reading(NamedTuple):
  """The counts of a response.

  Attributes:
    response: words in total.
    monologue: words in think blocks.
    solution: words outside them.
    kinds: kind of each think block, in order.
  """

  response: int
  monologue: int
  solution: int
  kinds: list[str]


def main(argv: list[str]) -> None:
  del argv
  folders = [pathlib.Path(folder) for folder in _EVALUATIONS.value]
  labels = _LABELS.value or [folder.name for folder in folders]
  if len(folders) != 2 or len(set(labels)) != 2 or len(labels) != 2:
    raise UserError("--evaluations and --labels: give two folders, and two different names")
  readings = _readings(folders, labels)
  settings = [json.loads((folder / "settings.json").read_text("utf-8")) for folder in folders]
  _note_differences(*settings)
  models = {}
  for label, settings_of_model in zip(labels, settings):
    responses = list(itertools.chain(*readings[label]))
    models[label] = {"settings": settings_of_model} | describe(responses)
  result = {
    "responses": _RESPONSES.value,
    "problems": len(readings[labels[0]]),
    "models": models,
    "difference": difference(*readings.values()),
    "pictures": pictures(readings, models),
  }
  output = pathlib.Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  (output / "reasoning.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  print(_text(result))
  print(f"wrote {output}/reasoning.json")


def _note_differences(first: dict, second: dict) -> None:
  """Prints the settings in which two evaluations differ, so that lengths are not comparable."""
  differences = []
  # Mode and style select the prompt; max_tokens truncates responses and so shortens them.
  for key in ("mode", "style", "max_tokens"):
    if first[key] != second[key]:
      differences.append(f"{key} {first[key]} and {second[key]}")
  if differences:
    print(
      f"note: the evaluations have different settings ({'; '.join(differences)}), which change"
      " lengths and blocks"
    )


# ---------------------------------------------------------------------------------- counting


def read(line: dict, sample: dict) -> Reading:
  """Returns the counts of one sample of a problem's line (evals.passes); turns are concatenated."""
  # If the chat template opens the first block, the response itself does not contain the open tag.
  opened = OPEN if line["think_opened"] else ""
  text = "\n".join(opened + response for response in sample["responses"])
  # The pattern has one group, so `split` keeps the blocks: pieces with even indices are visible
  # text, those with odd indices are blocks. The first and the last piece are always visible text.
  pieces = _BLOCK.split(text)
  monologue, solution = _words(pieces[1::2]), _words(pieces[0::2])
  return Reading(monologue + solution, monologue, solution, list(_kinds(pieces)))


def _words(pieces: Sequence[str]) -> int:
  """Returns the number of words, separated by white space."""
  return len(" ".join(pieces).split())


def _kinds(pieces: Sequence[str]) -> Iterator[str]:
  """Yields the kind of each think block; the module's docstring defines the kinds."""
  last_block = len(pieces) - 2  # the last piece is visible text
  for i in range(1, len(pieces), 2):
    visible_before = "".join(pieces[:i:2])
    if not visible_before.strip():
      yield "planning"
    elif i == last_block and (_CHECKS.search(pieces[i]) or _STATED.search(visible_before)):
      yield "verification"
    else:
      yield "between"


def describe(readings: Sequence[Reading]) -> dict:
  """Returns statistics of a model's responses: count, quantiles of words, and think blocks.

  `kinds` has for each kind the number of blocks and the share of responses with one; `interleaved`
  is the share of responses with a block after visible text, `monolithic` the share with exactly one
  block, before all text.
  """
  blocks, responses_with = collections.Counter(), collections.Counter()
  responses_by_blocks = collections.Counter()
  interleaved = monolithic = 0
  for reading in readings:
    distinct = set(reading.kinds)
    blocks.update(reading.kinds)
    responses_with.update(distinct)
    responses_by_blocks[len(reading.kinds)] += 1
    interleaved += bool(distinct - {"planning"})  # any block after visible text
    monolithic += reading.kinds == ["planning"]
  count = len(readings)
  kinds = {}
  for kind in KINDS:
    kinds[kind] = {"blocks": blocks[kind], "share": responses_with[kind] / count}
  return {
    "count": count,
    "words": {name: _quantiles(_lengths(readings, name)) for name in LENGTHS},
    "blocks_per_response": blocks.total() / count,
    "responses_by_blocks": dict(sorted(responses_by_blocks.items())),
    "kinds": kinds,
    "interleaved": interleaved / count,
    "monolithic": monolithic / count,
  }


def difference(first, second) -> dict[str, dict]:
  """Returns {length: {value, se, low, high}}: words of the second model minus those of the first.

  The value is the mean over problems of the difference between the two models' means. low and high
  bound 95 % (1.96 standard errors); an interval that contains zero shows no difference.

  Args:
    first, second: for each problem, in the same order, the readings of its samples.
  """
  found = {}
  for name in LENGTHS:
    # One value for each problem: the samples of a problem are not independent.
    differences = []
    for readings_a, readings_b in zip(first, second):
      mean_a = np.mean(_lengths(readings_a, name))
      mean_b = np.mean(_lengths(readings_b, name))
      differences.append(mean_b - mean_a)
    found[name] = mean_and_error(differences)
    value, se = found[name].values()
    # A single problem has no standard error, and so no interval.
    if se is not None:
      found[name] |= {"low": value - 1.96 * se, "high": value + 1.96 * se}
  return found


def _lengths(readings: Sequence[Reading], name: str) -> list[int]:
  """Returns the words of each reading; `name` is one of LENGTHS."""
  return [getattr(reading, name) for reading in readings]


def _quantiles(values: Sequence[int]) -> dict[str, float]:
  """Returns mean, five quantiles and maximum."""
  points = (10, 25, 50, 75, 90)
  found = {"mean": float(np.mean(values))}
  for point, value in zip(points, np.percentile(values, points)):
    found[f"p{point}"] = float(value)
  found["max"] = max(values)
  return found


# ---------------------------------------------------------------------------------- files


def _readings(
  folders: Sequence[pathlib.Path], labels: Sequence[str]
) -> dict[str, list[list[Reading]]]:
  """Returns {label: for each problem in both evaluations, the readings of its samples}."""
  first, second = (_lines(folder, _RESPONSES.value) for folder in folders)
  # Evaluations may differ in benchmarks and --limit; only common problems are compared.
  common = [key for key in first if key in second]
  if not common:
    raise UserError(f"{folders[0]} and {folders[1]} have no problem in common")
  readings: dict[str, list[list[Reading]]] = {}
  for label, line_of in zip(labels, (first, second)):
    readings[label] = []
    for key in common:
      line = line_of[key]
      readings[label].append([read(line, sample) for sample in line["samples"]])
  return readings


def _lines(folder: pathlib.Path, name: str) -> dict[tuple[str, str], dict]:
  """Returns {(benchmark, id): line} of one pass over all benchmarks in an evaluation's folder."""
  # names: all passes found, for the error message.
  chosen, names = {}, set()
  for benchmark, lines_of_pass in passes.read(folder).items():
    names |= lines_of_pass.keys()
    for line in lines_of_pass.get(name, []):
      chosen[benchmark, line["id"]] = line
  if not chosen:
    raise UserError(
      f"{folder} has no responses called {name!r}; it has {', '.join(sorted(names)) or 'none'}:"
      " give output folders of srl_jax.evaluate, and --responses to match"
    )
  return chosen


def pictures(readings: dict[str, list[list[Reading]]], models: dict[str, dict]) -> dict:
  """Returns the data of Figure 4's pictures.

  "histograms" has one entry for responses and one for their think blocks, see `histogram`; "kinds"
  is {label: {kind of think block, interleaved or monolithic: share of the responses}}.
  """
  responses, monologues, kinds = {}, {}, {}
  for label, problems in readings.items():
    flat = list(itertools.chain(*problems))
    responses[label] = _lengths(flat, "response")
    monologues[label] = _lengths(flat, "monologue")
    shares = {kind: models[label]["kinds"][kind]["share"] for kind in KINDS}
    kinds[label] = shares | {name: models[label][name] for name in ("interleaved", "monolithic")}
  histograms = [
    {"title": "Words of a response"} | histogram(responses),
    {"title": "Words in its think blocks"} | histogram(monologues),
  ]
  return {"histograms": histograms, "kinds": kinds}


def histogram(values: dict[str, Sequence[int]]) -> dict:
  """Returns {"edges", "shares": {label: list}, "medians": {label: number}} of lengths.

  The edges end at the 99th percentile; larger values count in the last bin, so that the shares of a
  label add up to 1.
  """
  everything = np.concatenate(list(values.values())).astype(float)
  largest = max(1.0, np.percentile(everything, 99))
  edges = np.linspace(0.0, np.ceil(largest / BINS) * BINS, BINS + 1)
  middle = edges[-1] - edges[1] / 2  # of the last bin
  shares, medians = {}, {}
  for label, lengths in values.items():
    counts, _ = np.histogram(np.clip(lengths, 0, middle), edges)
    shares[label] = (counts / len(lengths)).tolist()
    medians[label] = float(np.median(lengths))
  return {"edges": edges.tolist(), "shares": shares, "medians": medians}


def _text(result: dict) -> str:
  """Returns the printed summary."""
  out = [f"{result['responses']} responses to {result['problems']} problems"]
  for label, model in result["models"].items():
    out.append(f"{label}: {tables.heading(model['settings'])}")
    for name, q in model["words"].items():
      out.append(
        f"  words, {name:<10} mean {q['mean']:.1f}, p10/p50/p90"
        f" {q['p10']:.0f}/{q['p50']:.0f}/{q['p90']:.0f}"
      )
    kinds = ", ".join(f"{kind} {found['share']:.0%}" for kind, found in model["kinds"].items())
    out.append(
      f"  think blocks: {model['blocks_per_response']:.2f} a response; responses with {kinds};"
      f" interleaved {model['interleaved']:.0%}, monolithic {model['monolithic']:.0%}"
    )
  for name, found in result["difference"].items():
    bounds = f" (95 %: {found['low']:+.1f} to {found['high']:+.1f})" if "low" in found else ""
    out.append(f"difference in words, {name}: {found['value']:+.1f}{bounds}")
  return "\n".join(out)


if __name__ == "__main__":
  command_line.run(main, flags.values)
