"""python -m srl_jax.prepare: expert solutions -> step examples, with a summary.

  python -m srl_jax.prepare --source=simplescaling/s1K-1.1 --output=data/s1k
  python -m srl_jax.prepare --source=rows.jsonl --output=data/mine \\
      --fields=problem=problem,solution=response,answer=answer --holdout=20

writes train.jsonl, validation.jsonl (whole problems, held out) and summary.json, and prints the
summary. A config reads the folder with data.source='jsonl' and data.path=FOLDER; preparing is a
way to look at the examples first: a config that names the source itself makes the same ones.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any

import ml_collections
from absl import flags

from srl_jax import errors
from srl_jax.data import problems as problems_lib
from srl_jax.data import solutions, sources

_SOURCE = flags.DEFINE_string(
  "source", None, "Name of a Hugging Face dataset, or a file of JSON lines.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)
_FIELDS = flags.DEFINE_list(
  "fields",
  ["problem=question", "solution=deepseek_attempt", "answer=solution"],  # s1K-1.1
  "Columns of the source: problem=, solution=, answer= and id=; the last two may be left out.",
)
_SPLIT = flags.DEFINE_string("split", "train", "Split of a Hugging Face dataset.")
_HOLDOUT = flags.DEFINE_integer("holdout", 60, "Problems to hold out for validation.")
_SEED = flags.DEFINE_integer("seed", 0, "Decides, with their ids, which problems are held out.")
_TITLE_HINT = flags.DEFINE_bool(
  "title_hint", False, "Give the next step's title in the prompt; the target is then the rest."
)
_KEEP_LAST_STEP = flags.DEFINE_bool("keep_last_step", False, "Make the last step a target too.")
_METHOD = flags.DEFINE_enum("method", "srl", problems_lib.METHODS, "What the examples are for.")


def main(argv: list[str]) -> None:
  del argv
  output = pathlib.Path(_OUTPUT.value)
  if output.exists() and not output.is_dir():
    raise ValueError(f"--output={output} is a file: name a folder")
  data = _data()
  method = _METHOD.value
  problems, counts = problems_lib.read_problems(data, method=method)
  examples = sources.make_examples(problems, counts, data, method=method, seed=_SEED.value)
  summary = _summary(problems, examples, data)
  _write(output, examples, summary)
  print(_table(summary))
  print(f"wrote {output}/train.jsonl, validation.jsonl and summary.json")


def _data() -> ml_collections.ConfigDict:
  """Returns the flags as a config's group `data`."""
  fields = dict.fromkeys(("problem", "solution", "answer", "id"), "")
  for item in _FIELDS.value:
    field, _, column = item.partition("=")
    if field not in fields or not column:
      raise ValueError(f"--fields: {item!r} is none of {', '.join(f'{f}=COLUMN' for f in fields)}")
    fields[field] = column
  source = _SOURCE.value
  is_file = os.path.exists(source) or source.endswith((".json", ".jsonl"))
  return ml_collections.ConfigDict(
    {
      "source": "jsonl" if is_file else "hub",
      "path": source,
      "split": _SPLIT.value,
      "fields": fields,
      "title_hint": _TITLE_HINT.value,
      "keep_last_step": _KEEP_LAST_STEP.value,
      "holdout": _HOLDOUT.value,
    }
  )


def _summary(
  problems: list[problems_lib.Problem], examples: sources.Examples, data: ml_collections.ConfigDict
) -> dict[str, Any]:
  by_step = problems if _METHOD.value == "srl" else []  # other methods use no steps
  splits = [solutions.split_steps(problem.solution) for problem in by_step]
  lengths = [len(step.text) for steps in splits for step in steps]
  return {
    "settings": {**data.to_dict(), "method": _METHOD.value, "seed": _SEED.value},
    "counts": examples.counts,
    "steps_per_solution": _percentiles([len(steps) for steps in splits]),
    "characters_per_step": _percentiles(lengths),
    "train": _size(examples.train),
    "validation": _size(examples.validation),
  }


def _percentiles(values: list[int]) -> dict[str, int]:
  """Returns the 10th, 50th and 90th percentile (the value at that rank), {} of nothing."""
  ranked = sorted(values)
  return {f"p{p}": ranked[(len(ranked) - 1) * p // 100] for p in (10, 50, 90) if ranked}


def _size(examples: list[sources.StepExample]) -> dict[str, int]:
  return {"examples": len(examples), "problems": len({e.problem_id for e in examples})}


def _table(summary: dict[str, Any]) -> str:
  """Returns the summary as lines of aligned text."""
  dropped = {k: n for k, n in summary["counts"].items() if k not in ("rows", "kept")}
  lines = [
    ("rows read", summary["counts"]["rows"]),
    ("rows kept", summary["counts"]["kept"]),
    *[(f"  dropped: {reason}", n) for reason, n in sorted(dropped.items())],
  ]
  for name in ("steps_per_solution", "characters_per_step"):
    if summary[name]:
      values = "/".join(map(str, summary[name].values()))
      lines.append((f"{name.replace('_', ' ')} p10/p50/p90", values))
  for side in ("train", "validation"):
    size = summary[side]
    lines.append((side, f"{size['examples']} examples of {size['problems']} problems"))
  width = max(len(name) for name, _ in lines)
  return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _write(output: pathlib.Path, examples: sources.Examples, summary: dict[str, Any]) -> None:
  """Writes the three files, all of them or none: they move into place when complete."""
  output.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
    for name, side in (("train", examples.train), ("validation", examples.validation)):
      with open(os.path.join(folder, f"{name}.jsonl"), "w", encoding="utf-8") as file:
        for example in side:
          file.write(json.dumps(dataclasses.asdict(example), ensure_ascii=False) + "\n")
    with open(os.path.join(folder, "summary.json"), "w", encoding="utf-8") as file:
      file.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    output.mkdir(exist_ok=True)
    for name in ("train.jsonl", "validation.jsonl", "summary.json"):
      os.replace(os.path.join(folder, name), output / name)


if __name__ == "__main__":
  errors.run(main)
