"""Compares two greedy evaluations of one model: equal tokens, or where and by how much they differ.

  python -m srl_jax.evaluate --model=MODEL --output=evals/builtin --benchmarks=amc23 ...
  python -m srl_jax.evaluate --model=MODEL --output=evals/vllm --benchmarks=amc23 ... \\
      --engine=vllm --servers=http://127.0.0.1:8101
  python -m benchmarks.same_tokens evals/builtin evals/vllm

Engines round differently, so greedy decoding may diverge where the two best tokens are nearly
equal. Up to there both have the same tokens, so the log-probs of the tokens that they choose are
those of the two best. Prints a Markdown table; exit code 1 if two differ by more than --within.
"""

import argparse
import pathlib
import sys

from srl_jax import command_line
from srl_jax.data.rows import json_lines
from srl_jax.errors import UserError


def responses(folder: pathlib.Path, benchmark: str) -> dict[str, list[dict]]:
  """{prompt id: its rollouts} of a benchmark's greedy responses."""
  file = folder / benchmark / "greedy.rollouts.jsonl"
  found = {}
  for place, row in json_lines(file):
    if not {"prompt_id", "rollouts"} <= row.keys():
      raise UserError(f"{place}: no response of srl_jax.evaluate; give its --output folders")
    found[row["prompt_id"]] = row["rollouts"]
  return found


def parting(ours: dict, theirs: dict) -> tuple[int, float] | None:
  """(index, difference in log-prob) of the first token that differs; None: they are the same."""
  pairs = zip(ours["token_ids"], theirs["token_ids"], strict=False)
  for i, (a, b) in enumerate(pairs):
    if a != b:  # only the first difference counts: after it the contexts differ
      return i, abs(ours["sampler_logprobs"][i] - theirs["sampler_logprobs"][i])
  lengths = len(ours["token_ids"]), len(theirs["token_ids"])
  return None if lengths[0] == lengths[1] else (min(lengths), float("inf"))


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folders", nargs=2, type=pathlib.Path)
  parser.add_argument("--within", type=float, default=1e-3, help="log-prob")
  given = parser.parse_args()
  first, second = given.folders
  benchmarks = sorted(path.parent.name for path in first.glob("*/greedy.rollouts.jsonl"))
  if not benchmarks:
    raise UserError(f"{first}: no */greedy.rollouts.jsonl; give srl_jax.evaluate's --output")
  far = 0
  print("| benchmark | responses | the same | parted at token (difference in log-prob) |")
  print("|---|---|---|---|")
  for name in benchmarks:
    ours, theirs = responses(first, name), responses(second, name)
    if ours.keys() != theirs.keys():
      raise UserError(f"{first} and {second} have other problems of {name}")
    # Greedy: one response for each prompt.
    found = {id: parting(ours[id][0], theirs[id][0]) for id in ours}
    parted = {id: at for id, at in found.items() if at}
    far += sum(gap > given.within for _, gap in parted.values())
    listed = ", ".join(f"{id}: {i} ({gap:.1e})" for id, (i, gap) in parted.items())
    print(f"| {name} | {len(found)} | {len(found) - len(parted)} | {listed} |")
  return 1 if far else 0


if __name__ == "__main__":
  with command_line.in_one_line():
    sys.exit(main())
