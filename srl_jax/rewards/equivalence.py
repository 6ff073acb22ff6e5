r"""Decides whether two final answers are mathematically equal; only worker processes import this.

latex2sympy2_extended (the parser of math-verify) parses and sympy computes. Values are compared
here and not by math-verify, which rounds to six decimals and treats differences below 1e-15 as
zero: tuples, vectors, matrices and sets element by element, numbers relative to their size, exactly
if both are exact, and with Qwen2.5-Math's tolerance if one has decimals. There is no time limit
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

# `normal_form` has removed units already; the parser would take the m of 3/4 m for one.
_AS_IT_STANDS = NormalizationConfig(units=False, malformed_operators=True, nits=True)
# M and m are two symbols.
_SYMBOLS = ConversionConfig(lowercase_symbols=False)
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
_MATRICES = (sympy.MatrixBase, sympy.MatrixExpr)
_INTERVALS = ("()", "[]", "(]", "[)")


def equivalent(question: tuple[str, str]) -> bool:
  """Returns whether a predicted and a gold answer, both in normal form, are equal."""
  if any(_BARE_GAMMA.search(form) for form in question):  # \Gamma without "(" is a symbol
    question = tuple(form.replace(r"\Gamma", r"\Upsilon ") for form in question)
  try:
    return _equivalent(*question)
  except MemoryError:
    raise  # this process has to end, see `workers.serve`
  except Exception:  # an answer that sympy fails on is not equal to the gold answer
    return False


def parses(form: str) -> bool:
  """Returns whether a normal form is a number or mathematics that the parser understands."""
  try:
    return number(form) is not None or _parse(form) is not None
  except MemoryError:
    raise
  except Exception:
    return False


def _equivalent(predicted: str, gold: str) -> bool:
  """Compares by text and numbers, then element by element, then as parsed expressions."""
  same = same_form(predicted, gold)
  if same is not None:
    return same
  # Lists are split here: the parser does not distinguish (1, 2), [1, 2] and "1, 2".
  predicted_list, gold_list = _elements(predicted), _elements(gold)
  if predicted_list and gold_list and len(predicted_list[1]) == len(gold_list[1]):
    return _same_elements(*predicted_list, *gold_list)
  return _same(_parse(predicted), _parse(gold))


# ---------------------------------------------------------------------------------- parsing

# The parser reads these as functions or constants (gamma and Gamma, E as Euler's number, I as the
# imaginary unit, d as a differential) or drops them (primes). In answers they are ordinary symbols,
# so each is replaced by a symbol that answers do not use.
_RENAMED = [
  (r"\\gamma(?![A-Za-z])", r"\\omicron "),
  (r"(?<![A-Za-z\\])([A-Za-z]*?)e(?=\s*_)", r"\1\\nabla "),
  (r"(?<=[A-Za-z])'+", lambda found: f"_{{prime{len(found[0])}}}"),
]
_LETTERS = {"E": r"\varsigma ", "I": r"\iota ", "d": r"\varrho "}
_COMMAND_OR_LETTER = re.compile(r"\\[A-Za-z]+|\\.|\{[a-z]*matrix\}|[EId]", re.DOTALL)
_CALCULUS = re.compile(r"\\int|\\frac\{ *d *[a-z]? *\} *\{ *d *[a-z] *\}|d[a-z] ?/ ?d[a-z]")
_BARE_GAMMA = re.compile(r"\\Gamma(?![A-Za-z]| ?\()")


@functools.lru_cache(1000)  # all responses of a group are compared with the same gold answer
def _parse(form: str) -> sympy.Basic | sympy.MatrixBase:
  """Returns a normal form as an expression, relation, set or matrix; raises for anything else."""
  # Powers of ten (12e6), mixed numbers (3 1/2) and numbers with a base (1011_2).
  form = re.sub(r"(?<![A-Za-z\\])(\d+\.?\d*|\.\d+)e(-?\d+|\+\d{2,})", r"\1 \\times 10^{\2}", form)
  form = re.sub(r"(?<![\w.}])(\d+)\s+(\d+)\s*/\s*(\d+)", r"(\1+\\frac{\2}{\3})", form)
  form = re.sub(r"(?<![\w.])\d\w*_(?:\{\w+\}|\d+)", _in_base_ten, form)
  for pattern, replacement in _RENAMED:
    form = re.sub(pattern, replacement, form)
  # In a derivative or an integral d keeps its meaning.
  letters = _LETTERS | ({"d": "d"} if _CALCULUS.search(form) else {})
  form = _COMMAND_OR_LETTER.sub(lambda found: letters.get(found[0], found[0]), form)
  # The parser fails on commands as subscripts: M_{\odot}.
  form = re.sub(r"_\s*\{?\s*\\([a-z]+)\s*\}?", r"_{\1}", form)
  text = normalize_latex(form, _AS_IT_STANDS)
  try:
    return _to_sympy(text)
  except Exception:  # a chain of equations such as x = a = 5: its last part is the value
    last = re.split(r"(?<![\\<>!])=", text)[-1]
    if "," in text or ";" in text or last == text:
      raise
    return _to_sympy(last)


def _to_sympy(text: str) -> sympy.Basic | sympy.MatrixBase:
  """Returns LaTeX parsed with real symbols; the symbol i becomes the imaginary unit."""
  parsed = latex2sympy(text, is_real=True, normalization_config=None, conversion_config=_SYMBOLS)
  return parsed.subs(sympy.Symbol("i", real=True), sympy.I)


def _in_base_ten(found: re.Match) -> str:
  """Returns a match such as 1011_2 as its decimal value, unchanged if it is no such number."""
  digits_and_base = based(found[0])
  return str(int(*digits_and_base)) if digits_and_base else found[0]


# ---------------------------------------------------------------------------------- comparing


def _same(x, y) -> bool:
  """Returns whether the predicted value x and the gold value y, both parsed, are equal."""
  x, y = _without_names(x, y)
  if _is_relation(x) and _is_relation(y):
    return _same_relations(x, y)
  if _is_relation(x) or _is_relation(y):
    return _same_sets(_as_set(x), _as_set(y))
  if isinstance(x, _MATRICES) or isinstance(y, _MATRICES):
    x, y = x.doit(), y.doit()  # evaluates products such as 2 A
    return x.shape == y.shape and all(map(values.same, x.flat(), y.flat()))
  if isinstance(x, (sympy.Set, sympy.Tuple)) or isinstance(y, (sympy.Set, sympy.Tuple)):
    return _same_sets(x, y)
  return values.same(x, y)


def _is_relation(x) -> bool:
  """Returns whether x is an equation, an inequality or a chain of them."""
  return isinstance(x, (Relational, sympy.And))


def _relations(x) -> list:
  """Returns the links of a chain a < b < c in the order in which they were written."""
  return list(getattr(x, "_unsorted_args", x.args)) if isinstance(x, sympy.And) else [x]


def _without_names(x, y) -> tuple:
  """Returns x and y, with an equation reduced to its right side if the other is a plain value."""
  if _is_relation(x) and not _is_relation(y) and _is_equation(x):
    return _relations(x)[-1].rhs, y
  # A gold equation is reduced only if its left side is a name, x or f(x): "5" does not answer
  # "x + y = 5".
  if _is_relation(y) and not _is_relation(x) and _is_equation(y):
    name = _relations(y)[0].lhs
    if name.is_Symbol or (name.args and all(arg.is_Symbol for arg in name.args)):
      return x, _relations(y)[-1].rhs
  return x, y


def _is_equation(x) -> bool:
  """Returns whether all links of a chain are equations."""
  return all(isinstance(part, sympy.Eq) for part in _relations(x))


def _as_set(x):
  """Returns the solution set of an inequality in one variable (x > 5); anything else unchanged."""
  return x.as_set() if _is_relation(x) else x


def _same_relations(x, y) -> bool:
  """Compares two relations, or two chains of relations."""
  xs, ys = _relations(x), _relations(y)
  if len(xs) == len(ys) == 1:
    return _same_relation(xs[0], ys[0])
  if _is_equation(x) and _is_equation(y):  # chains of equations: only the last value counts
    return values.same(xs[-1].rhs, ys[-1].rhs)
  return _matched(xs, ys, _same_relation)


def _same_relation(x: Relational, y: Relational) -> bool:
  """Returns whether two relations are equal, up to a factor (positive for inequalities)."""
  if isinstance(x, (sympy.Eq, sympy.Ne)) or isinstance(y, (sympy.Eq, sympy.Ne)):
    if type(x) is not type(y):
      return False
    if isinstance(y.rhs, (sympy.Set, sympy.Tuple)) or isinstance(x.rhs, (sympy.Set, sympy.Tuple)):
      return x.lhs == y.lhs and _same(x.rhs, y.rhs)
    # "x = 5" cannot be answered by an equation that x satisfies: the problem itself may state it.
    return _is_value(x) >= _is_value(y) and values.proportional(_difference(x), _difference(y))
  strict = (sympy.StrictLessThan, sympy.StrictGreaterThan)
  if isinstance(x, strict) != isinstance(y, strict):
    return False
  return values.proportional(x.gts - x.lts, y.gts - y.lts, positive=True)


def _difference(x: Relational) -> sympy.Expr:
  """Returns the numerator of left side minus right side, which is zero where the equation holds."""
  return sympy.fraction(sympy.together(x.lhs - x.rhs))[0]


def _is_value(x: Relational) -> bool:
  """Returns whether an equation gives a symbol a value: one side a symbol, the other constant."""
  return any(
    side.is_Symbol and not other.free_symbols
    for side, other in itertools.permutations((x.lhs, x.rhs))
  )


def _same_sets(x, y) -> bool:
  """Returns whether two sets or tuples are equal; a single value counts as the set of it."""
  if isinstance(x, sympy.Interval) and isinstance(y, sympy.Interval):
    ends = x.left_open == y.left_open and x.right_open == y.right_open
    return ends and _same(x.start, y.start) and _same(x.end, y.end)
  x, y = _as_list(x, y), _as_list(y, x)
  # Tuples have an order, finite sets do not; elements are compared by `_same`, not structurally.
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
  """Returns a value as a set, and an open interval beside a list as the pair that it may denote."""
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
  """Returns the elements of a set without those that are equal to an earlier one."""
  distinct = []
  for element in elements:
    if not any(_same(element, other) for other in distinct):
      distinct.append(element)
  return distinct


def _matched(xs, ys, same) -> bool:
  """Returns whether the elements of xs and ys can be paired, by greedy search.

  Greedy is exact because equality is (nearly) transitive.
  """
  left = list(ys)
  for x in xs:
    found = next((i for i, y in enumerate(left) if same(x, y)), None)
    if found is None:
      return False
    del left[found]
  return not left


# ---------------------------------------------------------------------------------- lists


def _same_elements(left: str, xs: list[str], right: str, ys: list[str]) -> bool:
  """Returns whether two lists of one length, given by brackets and elements, are equal."""
  if left == right == "":  # no brackets: several solutions, in any order
    return _matched(xs, ys, _equivalent_element)
  if len(xs) == 2 and left != right and left in _INTERVALS and right in _INTERVALS:
    return False  # an open end is not equal to a closed one
  return all(map(_equivalent_element, xs, ys))


@functools.lru_cache(1000)
def _equivalent_element(x: str, y: str) -> bool:
  """Returns `equivalent` of two elements, cached: pairing compares the same elements repeatedly."""
  return equivalent((x, y))


def _elements(form: str) -> tuple[str, list[str]] | None:
  """Returns (brackets, elements) of a tuple, interval, vector, matrix or bare list, or None."""
  matrix = _MATRIX.fullmatch(form)
  if matrix:
    # Rows are separated by \\, cells by &. A column becomes the list of its cells.
    rows = [row.split("&") for row in matrix[1].split(r"\\") if row.strip()]
    if all(len(row) == 1 for row in rows):
      return "matrix", [cell.strip() for [cell] in rows]
    return "matrix", [f"[{', '.join(map(str.strip, row))}]" for row in rows]
  if ";" in form and form[0] + form[-1] == "[]":  # Matlab's notation: [1, 2; 3, 4]
    return "matrix", [f"[{row.strip()}]" for row in form[1:-1].split(";")]
  if form[0] + form[-1] in _INTERVALS:
    parts = _split(form[1:-1])
    return (form[0] + form[-1], parts) if parts and len(parts) > 1 else None
  parts = [part for whole in _split(form) or [] for part in _both_signs(whole)]
  return ("", parts) if len(parts) > 1 else None


def _both_signs(form: str) -> list[str]:
  r"""Returns both values of a form with \pm; \mp takes the opposite sign."""
  if r"\pm" not in form:
    return [form]
  return [
    form.replace(r"\pm", upper).replace(r"\mp", lower) for upper, lower in (("+", "-"), ("-", "+"))
  ]


def _split(text: str) -> list[str] | None:
  """Returns the text split at commas outside all brackets, or None if its brackets do not match.

  Brackets of different kinds may close one another, as in the interval [0, 1).
  """
  parts, depth = [""], 0
  for character in text:
    depth += (character in "([{") - (character in ")]}")
    if depth < 0:
      return None  # "(1, 2) \cup (3, 4)" without its first and last bracket
    if character == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += character
  return [part.strip() for part in parts] if depth == 0 else None


# The first comparison imports and caches much. It runs at import, before any job's time limit.
equivalent(("(x+1)^2", "x^2+2x+1"))
