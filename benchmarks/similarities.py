"""Compares the similarities of srl_jax.rewards: their cost, and whether they prefer right steps.

  python -m benchmarks.similarities --data=steps.jsonl --problem=problem --solution=response

Prints the tables of docs/rewards.md. The steps are those of worked solutions. Each is changed in
one of six ways: three keep its meaning, three make it wrong (CHANGES). A good reward ranks the
first above the second.
"""

import argparse
import itertools
import random
import re
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from srl_jax import command_line
from srl_jax.data import solutions
from srl_jax.data.rows import local_rows
from srl_jax.rewards import SIMILARITIES

PAIRS = 500
LENGTHS = 100, 500, 2000  # characters of each text of a pair
SYNONYMS = {"calculate": "compute", "compute": "calculate", "determine": "find"}
SYNONYMS |= {"find": "determine", "therefore": "hence", "thus": "so"}
SYNONYMS |= {"simplify": "reduce", "need": "have", "substitute": "insert", "verify": "check"}
SYNONYMS |= {"identify": "name", "total": "overall"}


def replace(text: str, match: re.Match, new: str) -> str:
  """The text with `new` in the place of one match."""
  return text[: match.start()] + new + text[match.end() :]


def one_of(pattern: str, text: str, rng: random.Random) -> re.Match | None:
  """A random match of the pattern, or None."""
  found = list(re.finditer(pattern, text))
  return rng.choice(found) if found else None


# Not a part of a name, a decimal, an exponent or an index, nor the number of the step.
_INTEGER = r"(?<![\w.{^_])(?<!Step )\d+(?![\w.}])"
_NAME = r"(?<![\w\\{])[a-zA-Z](?!\w)"  # in formulas: a letter alone
_FORMULA = r"\\\((.+?)\\\)"
# At the beginning of a bracket or side of an equation and at its end, so that nothing binds closer.
_DIFFERENCE = r"(?:(?<=\()|(?<== )|(?<=\\\( ))(\w+) - (\w+)(?=\)| =(?! 0)| \\\))"
_FRACTION = r"\\frac\{([^{}]+)\}\{([^{}]+)\}"


def number_kept(text, rng):
  """An integer n is written n.0."""
  match = one_of(_INTEGER, text, rng)
  return match and replace(text, match, f"{match[0]}.0")


def number_broken(text, rng):
  """An integer is replaced by another of nearly the same size."""
  match = one_of(_INTEGER, text, rng)
  return match and replace(text, match, str(int(match[0]) + rng.randint(1, 9)))


def name_kept(text, rng):
  """All words with a synonym (SYNONYMS) are replaced by it."""
  new = re.sub(r"[A-Za-z]+", lambda match: synonym(match[0]), text)
  return new if new != text else None


def synonym(word: str) -> str:
  """The word's synonym in its capitalisation, or the word."""
  new = SYNONYMS.get(word.lower(), word.lower())
  return word if new == word.lower() else new.capitalize() if word[0].isupper() else new


def name_broken(text, rng):
  """A variable of a formula is replaced, in one place, by another variable of the step."""
  formula = one_of(_FORMULA, text, rng)
  names = sorted({name for part in re.findall(_FORMULA, text) for name in re.findall(_NAME, part)})
  match = formula and one_of(_NAME, formula[0], rng)
  if not match or len(names) < 2:
    return None
  other = rng.choice([name for name in names if name != match[0]])
  return replace(text, formula, replace(formula[0], match, other))


def order_kept(text, rng):
  """The two sides of an equation are exchanged."""
  equations = [m for m in re.finditer(_FORMULA, text) if re.fullmatch(r"[^=<>&]+=[^=<>&]+", m[1])]
  if not equations:
    return None
  match = rng.choice(equations)
  left, right = (side.strip() for side in match[1].split("="))
  return replace(text, match, f"\\( {right} = {left} \\)")


def order_broken(text, rng):
  """The two sides of a difference or of a fraction are exchanged."""
  match, new = one_of(_DIFFERENCE, text, rng), "{1} - {0}"
  if not match:
    match, new = one_of(_FRACTION, text, rng), "\\frac{{{1}}}{{{0}}}"
  if not match or match[1] == match[2]:
    return None
  return replace(text, match, new.format(match[1], match[2]))


# {what is changed: (keeps the meaning, makes the step wrong)}
CHANGES: dict[str, tuple[Callable, Callable]] = {
  "numbers": (number_kept, number_broken),
  "names": (name_kept, name_broken),
  "order": (order_kept, order_broken),
}


def changed_pairs(steps: list[str], rng: random.Random) -> list[tuple[str, bool, str, str]]:
  """PAIRS of (what is changed, whether the step is still right, changed step, step).

  The ways take turns; each takes the next step, in random order, that it can change.
  """
  rng.shuffle(steps)
  ways = [
    (name, right, change) for name, two in CHANGES.items() for right, change in zip((1, 0), two)
  ]
  queues, pairs = [iter(steps) for _ in ways], []
  for (name, right, change), queue in itertools.cycle(zip(ways, queues)):
    step, new = next((s, new) for s in queue if (new := change(s, rng)) and new != s)
    pairs.append((name, bool(right), new, step))
    if len(pairs) == PAIRS:
      return pairs


def preferences(pairs) -> None:
  """Prints rank correlations with being right, and the mean similarity after each change."""
  rights = np.array([right for _, right, _, _ in pairs])
  names = np.array([name for name, *_ in pairs])
  print("| similarity | " + " | ".join(["all", *CHANGES]) + " | mean, right / wrong |")
  print("|---" * (len(CHANGES) + 3) + "|")
  for measure, function in SIMILARITIES.items():
    values = np.array(function([(new, step) for _, _, new, step in pairs]))
    cells, means = [spearman(values, rights)], []
    for name in CHANGES:
      chosen, right = values[names == name], rights[names == name]
      cells.append(spearman(chosen, right))
      means.append(f"{name} {chosen[right].mean():.3f} / {chosen[~right].mean():.3f}")
    print(f"| `{measure}` | " + " | ".join([*cells, ", ".join(means)]) + " |", flush=True)


def spearman(values: np.ndarray, rights: np.ndarray) -> str:
  """Spearman's rank correlation."""
  return f"{stats.spearmanr(values, rights).statistic:+.2f}"


def costs(steps: list[str]) -> None:
  """Prints milliseconds of a pair, the median of 20 pairs of neighbouring texts."""
  text = "\n\n".join(steps)
  print("| similarity | " + " | ".join(f"{n:,} characters" for n in LENGTHS) + " |")
  print("|---" * (len(LENGTHS) + 1) + "|")
  for measure, function in SIMILARITIES.items():
    cells = []
    for n in LENGTHS:
      pairs = [(text[i : i + n], text[i + n // 2 : i + n // 2 + n]) for i in range(0, 20 * n, n)]
      seconds = []
      for pair in pairs:
        begin = time.perf_counter()
        function([pair])
        seconds.append(time.perf_counter() - begin)
      cells.append(f"{1000 * np.median(seconds):.3f} ms")
    print(f"| `{measure}` | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", required=True, help="file of worked solutions")
  parser.add_argument("--problem", default="problem", help="column")
  parser.add_argument("--solution", default="solution", help="column")
  given = parser.parse_args()
  steps = []
  for _, row in local_rows(given.data):
    steps += [step.text for step in solutions.split_steps(row[given.solution])]
  costs(steps)
  preferences(changed_pairs(steps, random.Random(0)))


if __name__ == "__main__":
  with command_line.in_one_line():
    main()
