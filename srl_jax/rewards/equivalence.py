r"""Whether two final answers are mathematically the same; only worker processes import this.

latex2sympy2_extended parses (the parser of math-verify), and sympy computes. Values are compared
here and not by math-verify, which rounds to six decimals and takes differences below 1e-15 for
zero: tuples, vectors, matrices and sets element by element, numbers relative to their size, exactly
where both are exact, and as closely as Qwen2.5-Math where one is a decimal. There is no time limit
here: `workers` ends the process.
"""

import functools
import itertools
import logging
import re

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.math_normalization import normalize_latex
from sympy.core.relational import Relational

from srl_jax.rewards import values
from srl_jax.rewards.normal_form import based, number, same_form

logging.disable(logging.CRITICAL)

# Units are gone already; the parser would take the m of 3/4 m for one. M and m are two symbols.
_AS_IT_STANDS = NormalizationConfig(units=False, malformed_operators=True, nits=True)
_SYMBOLS = ConversionConfig(lowercase_symbols=False)
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
_MATRICES = (sympy.MatrixBase, sympy.MatrixExpr)
_INTERVALS = ("()", "[]", "(]", "[)")


def equivalent(question: tuple[str, str]) -> bool:
  """Returns whether a predicted and a gold answer, both in normal form, are the same."""
  if any(_BARE_GAMMA.search(form) for form in question):  # then a symbol and not the function
    question = tuple(form.replace(r"\Gamma", r"\Upsilon ") for form in question)
  try:
    return _equivalent(*question)
  except MemoryError:
    raise  # this process is spent
  except Exception:  # whatever sympy stumbles over in an answer: it is not the gold one
    return False


def parses(form: str) -> bool:
  """Returns whether a normal form is a number or mathematics that sympy knows, not only a text."""
  try:
    return number(form) is not None or _parse(form) is not None
  except MemoryError:
    raise
  except Exception:
    return False


def _equivalent(predicted: str, gold: str) -> bool:
  same = same_form(predicted, gold)
  if same is not None:
    return same
  predicted_list, gold_list = _elements(predicted), _elements(gold)
  if predicted_list and gold_list and len(predicted_list[1]) == len(gold_list[1]):
    return _same_elements(*predicted_list, *gold_list)
  return _same(_parse(predicted), _parse(gold))


# ---------------------------------------------------------------------------------- parsing

# The parser takes these for functions or constants (gamma and Gamma, E for Euler's number, I for
# the imaginary unit, d for a differential), or drops them (primes). In answers they are symbols
# like others: each becomes one that answers do not use.
_RENAMED = [
  (r"\\gamma(?![A-Za-z])", r"\\omicron "),
  (r"(?<![A-Za-z\\])([A-Za-z]*?)e(?=\s*_)", r"\1\\nabla "),
  (r"(?<=[A-Za-z])'+", lambda found: f"_{{prime{len(found[0])}}}"),
]
_LETTERS = {"E": r"\varsigma ", "I": r"\iota ", "d": r"\varrho "}
_COMMAND_OR_LETTER = re.compile(r"\\[A-Za-z]+|\\.|\{[a-z]*matrix\}|[EId]", re.DOTALL)
_CALCULUS = re.compile(r"\\int|\\frac\{ *d *[a-z]? *\} *\{ *d *[a-z] *\}|d[a-z] ?/ ?d[a-z]")
_BARE_GAMMA = re.compile(r"\\Gamma(?![A-Za-z]| ?\()")


@functools.lru_cache(1000)  # a gold answer is compared with a group of answers
def _parse(form: str) -> sympy.Basic | sympy.MatrixBase:
  """The expression, relation, set or matrix that a normal form is; raises if it is none."""
  form = re.sub(r"(?<![A-Za-z\\])(\d+\.?\d*|\.\d+)e(-?\d+|\+\d{2,})", r"\1 \\times 10^{\2}", form)
  form = re.sub(r"(?<![\w.}])(\d+)\s+(\d+)\s*/\s*(\d+)", r"(\1+\\frac{\2}{\3})", form)
  form = re.sub(r"(?<![\w.])\d\w*_(?:\{\w+\}|\d+)", _in_base_ten, form)
  for pattern, replacement in _RENAMED:
    form = re.sub(pattern, replacement, form)
  letters = _LETTERS | ({"d": "d"} if _CALCULUS.search(form) else {})
  form = _COMMAND_OR_LETTER.sub(lambda found: letters.get(found[0], found[0]), form)
  # The parser stumbles over commands as subscripts: M_{\odot}.
  form = re.sub(r"_\s*\{?\s*\\([a-z]+)\s*\}?", r"_{\1}", form)
  text = normalize_latex(form, _AS_IT_STANDS)
  try:
    return _to_sympy(text)
  except Exception:  # a chain of equations: its last part
    last = re.split(r"(?<![\\<>!])=", text)[-1]
    if "," in text or ";" in text or last == text:
      raise
    return _to_sympy(last)


def _to_sympy(text: str) -> sympy.Basic | sympy.MatrixBase:
  parsed = latex2sympy(text, is_real=True, normalization_config=None, conversion_config=_SYMBOLS)
  return parsed.subs(sympy.Symbol("i", real=True), sympy.I)


def _in_base_ten(found: re.Match) -> str:
  digits_and_base = based(found[0])
  return str(int(*digits_and_base)) if digits_and_base else found[0]


# ---------------------------------------------------------------------------------- comparing


def _same(x, y) -> bool:
  """Whether what was predicted (x) and the gold answer (y), both parsed, are the same."""
  x, y = _without_names(x, y)
  if _is_relation(x) and _is_relation(y):
    return _same_relations(x, y)
  if _is_relation(x) or _is_relation(y):
    return _same_sets(_as_set(x), _as_set(y))
  if isinstance(x, _MATRICES) or isinstance(y, _MATRICES):
    x, y = x.doit(), y.doit()  # 2 A
    return x.shape == y.shape and all(map(values.same, x.flat(), y.flat()))
  if isinstance(x, (sympy.Set, sympy.Tuple)) or isinstance(y, (sympy.Set, sympy.Tuple)):
    return _same_sets(x, y)
  return values.same(x, y)


def _is_relation(x) -> bool:
  return isinstance(x, (Relational, sympy.And))


def _relations(x) -> list:
  return list(getattr(x, "_unsorted_args", x.args)) if isinstance(x, sympy.And) else [x]


def _without_names(x, y) -> tuple:
  """Of an equation (also a chain of them) and a value: its right side, and the value."""
  if _is_relation(x) and not _is_relation(y) and _is_equation(x):
    return _relations(x)[-1].rhs, y
  if _is_relation(y) and not _is_relation(x) and _is_equation(y):
    name = _relations(y)[0].lhs
    if name.is_Symbol or (name.args and all(arg.is_Symbol for arg in name.args)):
      return x, _relations(y)[-1].rhs
  return x, y


def _is_equation(x) -> bool:
  return all(isinstance(part, sympy.Eq) for part in _relations(x))


def _as_set(x):
  """The set that an inequality in one variable describes (x > 5), or what it was."""
  return x.as_set() if _is_relation(x) else x


def _same_relations(x, y) -> bool:
  xs, ys = _relations(x), _relations(y)
  if len(xs) == len(ys) == 1:
    return _same_relation(xs[0], ys[0])
  if _is_equation(x) and _is_equation(y):  # chains: what they end with
    return values.same(xs[-1].rhs, ys[-1].rhs)
  return _matched(xs, ys, _same_relation)


def _same_relation(x: Relational, y: Relational) -> bool:
  """Equations are the same up to a factor, inequalities up to a positive one."""
  if isinstance(x, (sympy.Eq, sympy.Ne)) or isinstance(y, (sympy.Eq, sympy.Ne)):
    if type(x) is not type(y):
      return False
    if isinstance(y.rhs, (sympy.Set, sympy.Tuple)) or isinstance(x.rhs, (sympy.Set, sympy.Tuple)):
      return x.lhs == y.lhs and _same(x.rhs, y.rhs)
    # x = 5 is not answered by an equation for x, which the problem itself may state.
    return _is_value(x) >= _is_value(y) and values.proportional(_difference(x), _difference(y))
  strict = (sympy.StrictLessThan, sympy.StrictGreaterThan)
  if isinstance(x, strict) != isinstance(y, strict):
    return False
  return values.proportional(x.gts - x.lts, y.gts - y.lts, positive=True)


def _difference(x: Relational) -> sympy.Expr:
  return sympy.fraction(sympy.together(x.lhs - x.rhs))[0]


def _is_value(x: Relational) -> bool:
  return any(
    side.is_Symbol and not other.free_symbols
    for side, other in itertools.permutations((x.lhs, x.rhs))
  )


def _same_sets(x, y) -> bool:
  """Whether two sets or tuples are the same; a value is the set of it."""
  if isinstance(x, sympy.Interval) and isinstance(y, sympy.Interval):
    ends = x.left_open == y.left_open and x.right_open == y.right_open
    return ends and _same(x.start, y.start) and _same(x.end, y.end)
  x, y = _as_list(x, y), _as_list(y, x)
  if x == y:
    return True
  if isinstance(x, sympy.Tuple) and isinstance(y, sympy.Tuple):
    return len(x) == len(y) and all(map(_same, x, y))
  finite = (sympy.FiniteSet, sympy.Tuple)
  if isinstance(x, finite) and isinstance(y, finite):
    return _matched(_distinct(x.args), _distinct(y.args), _same)
  if isinstance(x, sympy.Union) and isinstance(y, sympy.Union):
    return _matched(x.args, y.args, _same)
  if isinstance(x, sympy.Set) and isinstance(y, sympy.Set):
    return x.symmetric_difference(y).is_empty is True
  return False


def _as_list(x, other):
  """A value as a set, and an open interval as the pair it may be beside a list."""
  if not isinstance(x, (sympy.Set, sympy.Tuple)):
    return sympy.FiniteSet(x)
  if (
    isinstance(x, sympy.Interval)
    and x.is_open
    and isinstance(other, (sympy.FiniteSet, sympy.Tuple))
  ):
    return sympy.Tuple(x.start, x.end)
  return x


def _distinct(elements: tuple) -> list:
  """The elements of a set once each, however they are written."""
  distinct = []
  for element in elements:
    if not any(_same(element, other) for other in distinct):
      distinct.append(element)
  return distinct


def _matched(xs, ys, same) -> bool:
  """Whether each of xs is the same as one of ys, and each of ys is taken once."""
  left = list(ys)
  for x in xs:
    found = next((i for i, y in enumerate(left) if same(x, y)), None)
    if found is None:
      return False
    del left[found]
  return not left


# ---------------------------------------------------------------------------------- lists


def _same_elements(left: str, xs: list[str], right: str, ys: list[str]) -> bool:
  """Whether two lists of one length, each given by its brackets and elements, are the same."""
  if left == right == "":  # solutions in any order
    return _matched(xs, ys, _equivalent_element)
  if len(xs) == 2 and left != right and left in _INTERVALS and right in _INTERVALS:
    return False  # an open end is not a closed one
  return all(map(_equivalent_element, xs, ys))


@functools.lru_cache(1000)
def _equivalent_element(x: str, y: str) -> bool:
  return equivalent((x, y))


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
  parts = [part for whole in _split(form) or [] for part in _both_signs(whole)]
  return ("", parts) if len(parts) > 1 else None


def _both_signs(form: str) -> list[str]:
  r"""Both values of a form with \pm."""
  if r"\pm" not in form:
    return [form]
  return [
    form.replace(r"\pm", upper).replace(r"\mp", lower) for upper, lower in (("+", "-"), ("-", "+"))
  ]


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
