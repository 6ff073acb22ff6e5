"""Compares two sympy expressions, with or without symbols.

Exact values are equal if their difference is zero: computed exactly if it is rational, else to 350
digits relative to their size (sympy's evalf increases its working precision as needed). A value
with a decimal may differ by DECIMALS_AGREE, the tolerance of Qwen2.5-Math. Expressions with symbols
are evaluated at several points, which reveals nearly every difference, and then compared by
algebra.
"""

import random

import sympy

from srl_jax.rewards.normal_form import DECIMALS_AGREE

# Digits of a first evaluation; most digits that evalf may use; points at which functions are
# compared.
_DIGITS, _MOST_DIGITS, _POINTS = 60, 400, 8
_EXACTLY = sympy.Float(10, 20) ** -50  # relative; ten of the _DIGITS are guard digits
_ZERO = sympy.Float(10, 20) ** -350  # relative; fifty of the _MOST_DIGITS are guard digits
_DECIMALS = sympy.Rational(DECIMALS_AGREE.numerator, DECIMALS_AGREE.denominator)
_NOT_FINITE = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)


def same(x: sympy.Expr, y: sympy.Expr) -> bool:
  """Returns whether x equals the gold value y; an infinite or undefined one equals only itself."""
  y = y.doit()
  # Nothing but the integer itself equals an integer gold value: decimals in x are taken as exact.
  if y.is_Integer:
    x = _with_fractions(x)
  x = x.doit()
  if x.has(*_NOT_FINITE) or y.has(*_NOT_FINITE):
    return x == y
  if x == y:
    return True
  if not isinstance(x, sympy.Expr) or not isinstance(y, sympy.Expr):
    return False
  if not x.free_symbols and not y.free_symbols:
    return _same_numbers(x, y)
  # Functions are compared exactly, so decimal coefficients must become fractions.
  return _same_functions(_with_fractions(x), _with_fractions(y))


def proportional(x: sympy.Expr, y: sympy.Expr, *, positive: bool = False) -> bool:
  """Returns whether x = c y for a constant c other than zero, with c > 0 if `positive`."""
  x, y = _with_fractions(x), _with_fractions(y)
  symbols = sorted(x.free_symbols | y.free_symbols, key=str)
  if x.free_symbols != y.free_symbols:
    return False
  # c is the ratio at the first point where neither side is zero. The comparison is
  # cross-multiplied, x(p) y = y(p) x, so that no division by an expression is needed.
  for point in _points(symbols):
    factor_x, factor_y = x.subs(point).doit(), y.subs(point).doit()
    if not same(factor_x, sympy.S.Zero) and not same(factor_y, sympy.S.Zero):
      same_sign = (factor_x / factor_y).evalf().is_positive
      return bool(same_sign or not positive) and same(x * factor_y, y * factor_x)
  return False


def _same_numbers(x: sympy.Expr, y: sympy.Expr) -> bool:
  """Returns whether two expressions without symbols have the same value."""
  if x.has(sympy.Float) or y.has(sympy.Float):
    return bool(_agree(x, y, _DECIMALS))
  difference = x - y
  if difference.is_Rational:
    return difference == 0
  agree = _agree(x, y, _EXACTLY)
  if (
    agree
  ):  # to 60 digits, which is not enough for 5 + e^{-200} and 5: compute the difference itself
    rest = abs(difference.evalf(2, maxn=_MOST_DIGITS))
    agree = bool(rest <= _ZERO * abs(y.evalf()))
  return _is_zero(difference) if agree is None else agree


def _agree(x: sympy.Expr, y: sympy.Expr, tolerance) -> bool | None:
  """Returns whether two numbers agree, relative to the larger; None if evalf cannot decide it."""
  x, y = x.evalf(_DIGITS), y.evalf(_DIGITS)
  largest = max(abs(x), abs(y))
  # evalf returns something else than a Float if it cannot determine the digits.
  if not largest.is_Float and largest != 0:
    return None
  if tolerance is _EXACTLY and largest < _EXACTLY:
    return None  # both are nearly zero, perhaps by cancellation of large terms
  return bool(abs(x - y) <= tolerance * largest)


def _is_zero(x: sympy.Expr) -> bool:
  return sympy.simplify(x) == 0


def _with_fractions(x: sympy.Expr) -> sympy.Expr:
  """Returns x with decimals as exact fractions, and undefined functions f(t) as symbols."""
  x = x.xreplace({decimal: sympy.Rational(str(decimal)) for decimal in x.atoms(sympy.Float)})
  functions = x.atoms(sympy.core.function.AppliedUndef)
  return x.xreplace({f: sympy.Symbol(str(f), real=True) for f in functions})


def _same_functions(x: sympy.Expr, y: sympy.Expr) -> bool:
  """Returns whether two expressions with symbols are equal for all values of the symbols."""
  symbols = sorted(x.free_symbols | y.free_symbols, key=str)
  verdicts = []
  for point in _points(symbols):
    at_x, at_y = x.subs(point).doit(), y.subs(point).doit()
    # A pole, or outside the domain of one side.
    if at_x.has(*_NOT_FINITE) or at_y.has(*_NOT_FINITE):
      continue
    verdicts.append(_agree(at_x, at_y, _EXACTLY) if at_x != at_y else True)
    if verdicts[-1] is False:
      return False
  difference = x - y
  # No point shows a difference. With too few usable points (0/0 at the others) algebra decides
  # alone.
  if verdicts.count(True) < _POINTS // 2:
    return bool(verdicts) and _is_zero(difference)
  if not difference.free_symbols:
    return _same_numbers(difference, sympy.S.Zero)
  # A rational function is zero exactly if its expanded numerator is: proof, not sampling.
  if difference.is_rational_function(*symbols):
    return sympy.expand(sympy.fraction(sympy.together(difference))[0]) == 0
  return True  # agreement at the points must suffice for other functions


def _points(symbols: list[sympy.Symbol]) -> list[dict]:
  """Returns _POINTS assignments of rational values to the symbols, the same in each call.

  Points 0 and 2 are all positive, so that roots and logarithms are defined; the others have random
  signs. Magnitudes are up to 1, 10 and 30.
  """
  numbers = random.Random(0)
  points = []
  for i in range(_POINTS):
    size = (1, 1, 10, 30)[i % 4]
    point = {}
    for symbol in symbols:
      sign = 1 if i % 2 == 0 and i < 4 else numbers.choice([-1, 1])
      # k / 997 with a prime denominator: unlikely to be a root of anything that an answer contains.
      point[symbol] = sympy.Rational(sign * numbers.randrange(100, 997), 997) * size
    points.append(point)
  return points
