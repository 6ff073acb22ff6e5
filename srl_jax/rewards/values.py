"""Whether two values, sympy expressions with or without symbols, are the same.

Exact values are the same if their difference is zero: computed exactly where it is rational, else
to 350 digits relative to their size (sympy's evalf raises its precision as far as it takes).
A value with a decimal in it may be off by DECIMALS_AGREE, the protocol of Qwen2.5-Math. Expressions
with symbols are compared at several points, where a difference shows at once, and by algebra.
"""

import random

import sympy

from srl_jax.rewards.normal_form import DECIMALS_AGREE

_DIGITS, _MOST_DIGITS, _POINTS = 60, 400, 8
_EXACTLY = sympy.Float(10, 20) ** -50  # relative; the guard digits are for evalf
_ZERO = sympy.Float(10, 20) ** -350
_DECIMALS = sympy.Rational(DECIMALS_AGREE.numerator, DECIMALS_AGREE.denominator)
_NOT_FINITE = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)


def same(x: sympy.Expr, y: sympy.Expr) -> bool:
  """Returns whether x is y, the gold value; an infinite or undefined one equals only its like."""
  y = y.doit()
  if y.is_Integer:  # a whole gold number is met by itself only, whatever decimals x is written with
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
  return _same_functions(_with_fractions(x), _with_fractions(y))


def proportional(x: sympy.Expr, y: sympy.Expr, *, positive: bool = False) -> bool:
  """Returns whether x = c y for a number c, not zero (and positive if that is asked for)."""
  x, y = _with_fractions(x), _with_fractions(y)
  symbols = sorted(x.free_symbols | y.free_symbols, key=str)
  if x.free_symbols != y.free_symbols:
    return False
  for point in _points(symbols):
    factor_x, factor_y = x.subs(point).doit(), y.subs(point).doit()
    if not same(factor_x, sympy.S.Zero) and not same(factor_y, sympy.S.Zero):
      same_sign = (factor_x / factor_y).evalf().is_positive
      return bool(same_sign or not positive) and same(x * factor_y, y * factor_x)
  return False


def _same_numbers(x: sympy.Expr, y: sympy.Expr) -> bool:
  if x.has(sympy.Float) or y.has(sympy.Float):
    return bool(_agree(x, y, _DECIMALS))
  difference = x - y
  if difference.is_Rational:
    return difference == 0
  agree = _agree(x, y, _EXACTLY)
  if agree:  # 5 + e^{-200} is not 5: evalf raises its precision until it sees two digits
    rest = abs(difference.evalf(2, maxn=_MOST_DIGITS))
    agree = bool(rest <= _ZERO * abs(y.evalf()))
  return _is_zero(difference) if agree is None else agree


def _agree(x: sympy.Expr, y: sympy.Expr, tolerance) -> bool | None:
  """Whether two numbers agree, relative to the larger; None if their digits cannot be computed."""
  x, y = x.evalf(_DIGITS), y.evalf(_DIGITS)
  largest = max(abs(x), abs(y))
  if not largest.is_Float and largest != 0:
    return None
  if tolerance is _EXACTLY and largest < _EXACTLY:
    return None  # two zeros, of which one may be what is left of large numbers
  return bool(abs(x - y) <= tolerance * largest)


def _is_zero(x: sympy.Expr) -> bool:
  return sympy.simplify(x) == 0


def _with_fractions(x: sympy.Expr) -> sympy.Expr:
  """Decimals as they were written, functions without a definition as symbols."""
  x = x.xreplace({decimal: sympy.Rational(str(decimal)) for decimal in x.atoms(sympy.Float)})
  functions = x.atoms(sympy.core.function.AppliedUndef)
  return x.xreplace({f: sympy.Symbol(str(f), real=True) for f in functions})


def _same_functions(x: sympy.Expr, y: sympy.Expr) -> bool:
  """Whether two expressions with symbols are the same for all values of the symbols."""
  symbols = sorted(x.free_symbols | y.free_symbols, key=str)
  verdicts = []
  for point in _points(symbols):
    at_x, at_y = x.subs(point).doit(), y.subs(point).doit()
    if at_x.has(*_NOT_FINITE) or at_y.has(*_NOT_FINITE):
      continue
    verdicts.append(_agree(at_x, at_y, _EXACTLY) if at_x != at_y else True)
    if verdicts[-1] is False:
      return False
  difference = x - y
  if verdicts.count(True) < _POINTS // 2:  # 0 / 0 is no value, whatever algebra makes of it
    return bool(verdicts) and _is_zero(difference)
  if not difference.free_symbols:
    return _same_numbers(difference, sympy.S.Zero)
  if difference.is_rational_function(*symbols):
    return sympy.expand(sympy.fraction(sympy.together(difference))[0]) == 0
  return True


def _points(symbols: list[sympy.Symbol]) -> list[dict]:
  """Values of both signs and of several sizes, the same in each call; first all positive."""
  numbers = random.Random(0)
  points = []
  for i in range(_POINTS):
    size = (1, 1, 10, 30)[i % 4]
    point = {}
    for symbol in symbols:
      sign = 1 if i % 2 == 0 and i < 4 else numbers.choice([-1, 1])
      point[symbol] = sympy.Rational(sign * numbers.randrange(100, 997), 997) * size
    points.append(point)
  return points
