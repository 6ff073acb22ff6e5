"""Whether two final answers are mathematically the same; only worker processes import this.

math-verify decides (antlr parses, sympy compares). Around it: tuples, vectors and matrices are
compared element by element, and numbers as closely as Qwen2.5-Math does. There is no time limit
here: `workers` ends the process.
"""

import logging
import re

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, Float

from srl_jax.rewards.normal_form import DECIMALS_AGREE, same_form

logging.disable(logging.CRITICAL)  # math-verify warns that its own time limits are off

# Units are gone already; math-verify would take the m of 3/4 m for one.
_AS_IT_STANDS = LatexExtractionConfig(
  normalization_config=NormalizationConfig(units=False, malformed_operators=True, nits=True)
)
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
_INTERVALS = ("()", "[]", "(]", "[)")


def equivalent(question: tuple[str, str]) -> bool:
  """Returns whether a predicted and a gold answer, both in normal form, are the same."""
  try:
    return _equivalent(*question)
  except MemoryError:
    raise  # this process is spent
  except Exception:  # whatever sympy stumbles over in an answer: it is not the gold one
    return False


def _equivalent(predicted: str, gold: str) -> bool:
  same = same_form(predicted, gold)
  if same is not None:
    return same
  predicted_list, gold_list = _elements(predicted), _elements(gold)
  if predicted_list and gold_list:
    return _same_elements(*predicted_list, *gold_list) or _same_mathematics(predicted, gold)
  return _same_mathematics(predicted, gold)


def _same_mathematics(predicted: str, gold: str) -> bool:
  answers, golds = _parse(predicted), _parse(gold)
  return verify(golds, answers, allow_set_relation_comp=True, timeout_seconds=None) or any(
    _close(x, y) for x in answers for y in golds
  )


def _parse(form: str) -> list:
  """The expression that math-verify sees in a normal form, if any, and then the text itself."""
  if "\\" not in form:
    form = re.sub(r"(\d)e(-?\d)", r"\1 \\times 10^{\2}", form)
  # A subscript makes a name: the parser takes E_{1} for Euler's number and stumbles over M_{\odot}.
  form = re.sub(r"(?<![A-Za-z\\])[Ee](?=_)", r"\\varepsilon ", form)
  form = re.sub(r"_\s*\{?\s*\\([a-z]+)\s*\}?", r"_{\1}", form)
  return parse(f"${form}$", [_AS_IT_STANDS], parsing_timeout=None)


def _close(x, y) -> bool:
  """Whether two numbers, at least one of them a decimal, agree as closely as the protocol asks."""
  if not (isinstance(x, Expr) and isinstance(y, Expr)) or x.free_symbols or y.free_symbols:
    return False
  if not (x.has(Float) or y.has(Float)):
    return False
  x, y = complex(x.evalf()), complex(y.evalf())
  return abs(x - y) <= float(DECIMALS_AGREE) * max(abs(x), abs(y))


# ---------------------------------------------------------------------------------- lists


def _same_elements(left: str, xs: list[str], right: str, ys: list[str]) -> bool:
  """Whether two lists, each given by its brackets and its elements, are the same."""
  if len(xs) != len(ys):
    return False
  if left == right == "":  # solutions in any order
    return all(any(_equivalent(x, y) for x in xs) for y in ys) and all(
      any(_equivalent(x, y) for y in ys) for x in xs
    )
  if len(xs) == 2 and left != right and left in _INTERVALS and right in _INTERVALS:
    return False  # an open end is not a closed one
  return all(_equivalent(x, y) for x, y in zip(xs, ys))


def _elements(form: str) -> tuple[str, list[str]] | None:
  """Brackets and elements of a tuple, an interval, a vector, a matrix or a bare list, or None."""
  matrix = _MATRIX.fullmatch(form)
  if matrix:
    rows = [row.split("&") for row in matrix[1].split(r"\\") if row.strip()]
    if all(len(row) == 1 for row in rows):
      return "matrix", [cell.strip() for [cell] in rows]
    return "matrix", [f"[{', '.join(map(str.strip, row))}]" for row in rows]
  if ";" in form and form[0] + form[-1] == "[]":
    return "matrix", [f"[{row.strip()}]" for row in form[1:-1].split(";")]
  if form[0] + form[-1] in _INTERVALS:
    parts = _split(form[1:-1])
    return (form[0] + form[-1], parts) if parts and len(parts) > 1 else None
  parts = _split(form)
  return ("", parts) if parts and len(parts) > 1 else None


def _split(text: str) -> list[str] | None:
  """The text at its commas outside all brackets, or None if its brackets do not match."""
  parts, depth = [""], 0
  for character in text:
    depth += (character in "([{") - (character in ")]}")
    if depth < 0:
      return None  # as in (1, 2) \cup (3, 4) without its ends
    if character == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += character
  return [part.strip() for part in parts] if depth == 0 else None


# The first comparison loads and caches much; no answer's time limit shall pay for that.
equivalent(("(x+1)^2", "x^2+2x+1"))
