r"""A normal form of final answers, in which most can be compared as text or as numbers.

The normal form removes differences that never change the meaning (delimiters, spacing, names of
commands) and those that Qwen2.5-Math's evaluation ignores: units, degrees, currency, the `x =`
before a value. The result is LaTeX without `$`, or a number that `number` parses. All functions
take (nearly) linear time, because they run in the trainer's own process.
"""

import math
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

DECIMALS_AGREE = Fraction(1, 10_000)  # relative tolerance
_MOST_BITS = 100_000  # of an integer that is computed here; larger powers are left to a worker

# Full-width ASCII (U+FF01 to U+FF5E has ASCII at an offset of 0xFEE0), and Chinese punctuation.
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻₀₁₂₃₄₅₆₇₈₉", "0123456789-0123456789")
_FULL_WIDTH |= {ord(wide): narrow for wide, narrow in zip("、。《》〈〉【】　", ",.()()() ")}

# fmt: off
_SYMBOLS = [
  ("−", "-"), ("–", "-"), ("÷", "/"), ("°C", ""), ("°", ""), ("⟨", "("), ("⟩", ")"),
  ("×", r"\times "), ("·", r"\cdot "), ("±", r"\pm "), ("√", r"\sqrt "), ("π", r"\pi "),
  ("θ", r"\theta "), ("∞", r"\infty "), ("≤", r"\le "), ("≥", r"\ge "), ("≠", r"\ne "),
  ("∪", r"\cup "),
]
# fmt: on
_TEXT = r"\\(?:text|mbox|textbf|textrm|textit|mathrm|mathbf|mathit|operatorname)\s*"
_SQUARED = r"(?:\s*\^\s*\{?[23]\}?)?"  # after a unit of area or volume

# (pattern, replacement) for answers typed as in a calculator or a chat: only for texts without
# LaTeX.
_TYPED = [
  (r"\*\*", "^"),
  (r"\^\(([^()]*)\)", r"^{\1}"),
  (r"\bnp\.", ""),
  (
    r"(?<![A-Za-z])(pi|theta|alpha|beta|infty|(?:arc)?(?:sin|cos|tan)|ln|log|exp)(?![A-Za-z])",
    r"\\\1 ",
  ),
  (r"\binfinity\b", r"\\infty "),
  (r"\*", r" \\cdot "),
]

# (pattern, replacement), applied in this order to the whole text. `\\` begins a row of a matrix,
# hence the lookbehinds (?<!\\).
_SPELLING = [
  (r"(?<!\\)\\[()\[\]]|\\?\$|\\(?:boxed|fbox)\b", ""),  # delimiters, currency
  (r"\\(?:left|right)(?![a-zA-Z])\.?|\\displaystyle\b|(?<!\\)\\!", ""),
  (r",\\[,;: ](?=\d{3})|\{,\}(?=\d{3}(?!\d))", ","),  # thousands
  (r"\{,\}", ","),
  (r"(?:(?<!\\)\\[,;: ]|~|\\q?quad\b| )+", " "),  # any spacing
  (r"^ *<([^<>]*,[^<>]*)> *$", r"(\1)"),
  (r"\\langle(?![a-zA-Z])", "("),
  (r"\\rangle(?![a-zA-Z])", ")"),
  (r"\^\s*([+-]?\d{2,}|[+-]\d)", r"^{\1}"),  # 2^10 means 2^{10}, unlike in TeX
  # The base of a number: 1011_{\text{two}}, (1011)_2, 1011 base 2.
  (r"\\text\w*\s*\{([^{}]*\bbase\b[^{}]*)\}", r"\1"),
  (r"_\s*\{?\s*\\text\w*\s*\{\s*(\w+)\s*\}\s*\}?", r"_{\1}"),
  (r"_\s*\{\s*\(?\s*(?:base\s*)?(\w+)\s*\)?\s*\}", r"_{\1}"),
  (r"^\s*\(\s*([0-9A-Za-z]+)\s*\)\s*_", r"\1_"),
  (r"(?<=\w) ?\(? ?(?:in )?base[ -]*(\w+) ?\)?\.? ?$", r"_{\1}"),
  (r"\\[dtc]frac\b", r"\\frac"),
  (r"\\?\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
  (r"\\sqrt\s*(\d+|[a-z])", r"\\sqrt{\1}"),
  (r"\{(?:[bBvp]matrix|array)\}(?:\s*\{[clr| ]*\})?", "{pmatrix}"),
  (r"\\([lgn]e)q(?![a-zA-Z])", r"\\\1"),
  (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b", ""),
  (r"\\%|\s*\bpercent\b", "%"),
  # \text at the end, after something else, is a unit (5 \text{ cm}^2). Elsewhere, or alone, it
  # holds words; \text{i} and \text{e} are numbers.
  (rf"(?<=[^\s{{(\[,=])\s*{_TEXT}\{{(?!\s*(?:and|or)\b|[eijk]\}})[^{{}}]*\}}{_SQUARED}[\s.]*$", ""),
  (rf"{_TEXT}\{{([^{{}}]*)\}}", r"\1"),
  (r"\s+(?:and|or)\s+", ", "),
]
_DIGITS = r"(?:\d+(?:\.\d*)?|\.\d+)"
_UNIT = (
  r"(?:cm|mm|km|kg|ft|lbs?|hrs?|ml|mL|Hz|mph|in(?:ches)?|feet|miles?|yards?|meters?|units?"
  r"|degrees?|radians?|dollars?|cents?|seconds?|minutes?|hours?|days?|years?)"
)
# A unit needs a space, brace or digit before it, so that the "m" of "sum" is not one.
_UNIT_AT_END = re.compile(rf"(?<=[\w}})]) *(?<![A-Za-z]){_UNIT}{_SQUARED}$")
_WORDS_AFTER_NUMBER = re.compile(
  rf"^([+-]?{_DIGITS}(?:e-?\d+)?) +(?!(?:sqrt|sin|cos|tan|log|exp|mod)\b)"
  rf"(?:[A-Za-z]{{3,}}|{_UNIT}|[mgsLJNWVK]\b)[A-Za-z /]*{_SQUARED}$"
)
_WORDS_AFTER_FRACTION = re.compile(r"^([+-]?(?:\d+ )?\d+ ?/ ?\d+) +[A-Za-z]{4}[A-Za-z /]*$")
# Only without LaTeX after it: in 12\times10^6\pi the power is one of several factors.
_TIMES_POWER_OF_TEN = re.compile(
  rf"^([+-]?{_DIGITS})\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*"
  r"(?:\{\s*\+?(-?\d{1,4})\s*\}|(\d))(?=[^\\]*$)"
)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?%?")
# Repeating decimals: 0.1(6); 0.1\overline{6}, 0.1\dot{6}, 0.\dot{1}4285\dot{7}; 0.333\ldots (the
# digits must occur three times or more).
_IN_PARENTHESES = re.compile(r"^\s*([+-]?\d*\.\d*)\((\d+)\)\s*$")
_REPEATING = re.compile(
  r"(?<!\d)(\d{0,40})\.(\d{0,40})(?:\s*\\(?:overline|bar|dot)\s*(?:\{\s*(\d{1,40})\s*\}|(\d))(?!\d*\\dot)"
  r"|\\dot\{?(\d)\}?(\d{0,40})\\dot\{?(\d)\}?)"
)
_GOES_ON = re.compile(
  r"(?<!\d)(\d{0,40})\.(\d{0,20}?)(\d{1,8}?)\3{2,8}\s*(?:\\l?dots|\\cdots|\.\.\.|…)"
)
_WORDS = re.compile(r"(?=.*[A-Za-z]{4})[A-Za-z]+(?:[ '-][A-Za-z]+)*")
# "x =", "x \in" or "(x, y) =" before the only value.
_NAMED = re.compile(
  r"^(?:[A-Za-z]\w?|\([A-Za-z](?:\s*,\s*[A-Za-z])+\))\s*(?:=|\\in(?![a-zA-Z]))\s*(?=[^=]+$)"
)


def normal_form(answer: str, *, keep_name: bool = False) -> str:
  """Returns the normal form of an answer; answers with the same one are equal.

  Args:
    answer: from `extract_answer`.
    keep_name: keep the `y =` before a value, which makes the answer an equation.
  """
  # Unicode first: white space, quotation marks, then fractions, exponents and subscripts that are
  # single characters.
  text = re.sub(r"\s+", " ", answer.translate(_FULL_WIDTH)).strip('`*" ')
  # Primes at the end belong to f' or x', but a quotation mark may end any other text.
  text = text.strip("'") if text.startswith("'") else re.sub(r"(?<![A-Za-z)}])'+$", "", text)
  text = re.sub("[¼-¾⅐-⅞]", _written_out, text).strip()
  text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda found: f"^{{{found[0].translate(_RAISED)}}}", text)
  text = re.sub("[₀-₉]+", lambda found: f"_{{{found[0].translate(_RAISED)}}}", text)
  # Repeating decimals become fractions before anything changes their digits.
  text = _IN_PARENTHESES.sub(r"\1\\overline{\2}", text)
  text = _GOES_ON.sub(_as_fraction, _REPEATING.sub(_as_fraction, text))
  if "\\" not in text:
    text = _rewrite(text, _TYPED)
  # Spellings of LaTeX, then powers of ten as 12e6, units, and thousands separators.
  for symbol, latex in _SYMBOLS:
    text = text.replace(symbol, latex)
  text = _rewrite(text, _SPELLING).strip('`*" :;,').rstrip(".:;, ")
  text = _TIMES_POWER_OF_TEN.sub(lambda found: f"{found[1]}e{found[2] or found[3]}", text)
  text = _UNIT_AT_END.sub("", text)
  text = _WORDS_AFTER_FRACTION.sub(r"\1", _WORDS_AFTER_NUMBER.sub(r"\1", text))
  if _THOUSANDS.fullmatch(text):
    text = text.replace(",", "").replace(" ", "")
  return text.strip() if keep_name else _NAMED.sub("", text).strip()


def _written_out(found: re.Match) -> str:
  """Returns a one-character fraction written out: 3½ becomes 3 1/2."""
  return " " + unicodedata.normalize("NFKC", found[0]).replace("⁄", "/")


def _as_fraction(found: re.Match) -> str:
  r"""Returns a repeating decimal as a LaTeX fraction: 0.1\overline{6} is (16 - 1) / 90."""
  whole, fixed, *repeats = found.groups(default="")
  repeat = "".join(repeats)
  # With f fixed and r repeating digits: (all digits - fixed digits) / ((10^r - 1) 10^f).
  top = int(whole + fixed + repeat) - int(whole + fixed or "0")
  return rf"\frac{{{top}}}{{{(10 ** len(repeat) - 1) * 10 ** len(fixed)}}}"


def squeeze(form: str) -> str:
  """Returns a normal form without spaces and without braces around one character.

  A space between digits remains: 3 1/2 is not 31/2. Words and the letters of options become
  lower-case; M and m remain two variables.
  """
  text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", form)
  text = re.sub(r"\{(\w)\}", r"\1", text)
  without_commands = re.sub(r"\\[A-Za-z]+", " ", text)
  is_words = re.search(r"[A-Za-z]{3}", without_commands) or re.fullmatch("[A-Ja-j]", text)
  return text.lower() if is_words else text


def _rewrite(text: str, rules: list[tuple[str, str]]) -> str:
  """Returns the text after all (pattern, replacement) rules, in order."""
  for pattern, replacement in rules:
    text = re.sub(pattern, replacement, text)
  return text


# ---------------------------------------------------------------------------------- numbers


class Number(NamedTuple):
  """A plain number.

  Attributes:
    value: its value; of a percentage, the number before the sign.
    exact: whether it was written without decimals.
    percent: whether it was written with a percent sign.
  """

  value: Fraction
  exact: bool
  percent: bool


_NUMBER = re.compile(
  # 3e-5 and 3e05 are powers of ten, and so is 1e+16, as Python prints it. 3e+5 is more likely a sum
  # with Euler's number.
  rf"([+-]?)(?:({_DIGITS})(e(?:-?\d{{1,4}}|\+\d{{2,4}}))?(?:\s*/\s*({_DIGITS}))?"
  rf"|\\frac\{{({_DIGITS})\}}\{{({_DIGITS})\}})\s*(%?)",
  re.IGNORECASE,
)
_MIXED = re.compile(
  r"([+-]?)(\d+)(?:\s+(\d+)\s*/\s*(\d+)|\s*\\frac\s*(?:\{(\d+)\}\{(\d+)\}|(\d)\s*(\d)))"
)
_POWER = re.compile(r"([+-]?)(\d+)\s*\^\s*(?:\{\s*([+-]?\d{1,6})\s*\}|(\d))")


def number(form: str) -> Number | None:
  """Returns the plain number in a normal form (12, -3.5, 4.5e33, 3/4, 3 1/2, 10^{400}, 20%).

  Returns None for anything else, and for a power too large to be computed here.
  """
  if len(form) > 300:  # no answer is so long a number, and int() takes quadratic time
    return None
  if match := _MIXED.fullmatch(form):
    sign, whole, *parts = match.groups()
    top, bottom = (int(part) for part in parts if part)
    # An improper fraction after a number is a factor and not part of a mixed number.
    return _signed(sign, int(whole) + Fraction(top, bottom)) if top < bottom else None
  if match := _POWER.fullmatch(form):
    return _power(match[1], int(match[2]), int(match[3] or match[4]))
  match = _NUMBER.fullmatch(form)
  if not match:
    return None
  sign, whole, exponent, below, top, bottom, percent = match.groups()
  # \frac{top}{bottom}, or top / bottom with an optional exponent.
  top, bottom = (top, bottom) if top else (whole + (exponent or ""), below or "1")
  # Fraction does not parse "3." and some forms with an exponent, which are common in answers.
  top, bottom = (re.sub(r"\.(?=e|$)", "", x, flags=re.IGNORECASE) for x in (top, bottom))
  if Fraction(bottom) == 0:
    return None
  return _signed(sign, Fraction(top) / Fraction(bottom), "." not in top + bottom, bool(percent))


def _signed(sign: str, value: Fraction, exact: bool = True, percent: bool = False) -> Number:
  """Returns the Number with its sign applied."""
  return Number(-value if sign == "-" else value, exact, percent)


def _power(sign: str, base: int, exponent: int) -> Number | None:
  """Returns base^exponent, or None if it has more than _MOST_BITS bits."""
  if base == 0 or abs(exponent) * math.log2(base) > _MOST_BITS:
    return None
  return _signed(sign, Fraction(base) ** exponent)


_BASED = re.compile(r"([+-]?)(\d[0-9A-Fa-f]*|[A-F][0-9A-F]+)\s*_\s*\{?\s*(\w+)\s*\}?")
_BASE_NAMES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def based(form: str) -> tuple[str, int] | None:
  """Returns (digits with sign, base) of a number that states its base (1011_2), or None."""
  match = _BASED.fullmatch(form) if len(form) <= 300 else None
  if not match:
    return None
  name = match[3].lower()
  if name in _BASE_NAMES:
    base = _BASE_NAMES.index(name) + 2
  else:
    base = int(name) if name.isascii() and name.isdecimal() and len(name) <= 2 else 0
  if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in match[2]):
    return None
  return match[1].removeprefix("+") + (match[2].lstrip("0") or "0"), base


def _same_based(a: str, b: str) -> bool | None:
  """Returns whether two numbers are equal if at least one states its base; None if neither does."""
  x, y = based(a), based(b)
  if x and y:
    return int(*x) == int(*y)
  if x or y:
    # "1011" is accepted for 1011_2: the problem specifies the base.
    digits, other = (x[0], b) if x else (y[0], a)
    return other.removeprefix("+").upper() == digits.upper() if number(other) else None
  return None


def same_form(predicted: str, gold: str) -> bool | None:
  """Returns whether two normal forms are equal if text or numbers decide it, else None.

  Numbers without decimals must be equal. If one has decimals, they may differ by DECIMALS_AGREE
  (Qwen2.5-Math's rule), but an integer gold value equals only itself: 9999.857 is not 10000. If one
  is a percentage and the other is not, 20% equals both 20 and 0.2.
  """
  if squeeze(predicted) == squeeze(gold):
    return True
  same = _same_based(predicted, gold)
  if same is not None:
    return same
  x, y = number(predicted), number(gold)
  if x and y:
    return any(_agree(x.value * share, y.value, _exactly(x, y)) for share in _shares(x, y))
  if any(_WORDS.fullmatch(side) for side in (predicted, gold)):
    return False  # sympy would multiply letters: "east" would equal "seat"
  return None


def _shares(x: Number, y: Number) -> list[Fraction]:
  """Returns the factors to try on x; two if exactly one of the numbers is a percentage."""
  if x.percent == y.percent:
    return [Fraction(1)]
  return [Fraction(1), Fraction(1, 100) if x.percent else Fraction(100)]


def _exactly(x: Number, y: Number) -> bool:
  """Returns whether a predicted x must equal the gold number y exactly instead of approximately."""
  both_whole = x.value.denominator == y.value.denominator == 1
  return (y.exact and (x.exact or y.value.denominator == 1)) or (x.exact and both_whole)


def _agree(x: Fraction, y: Fraction, exactly: bool) -> bool:
  """Returns whether x equals y, or is within the relative tolerance unless `exactly`."""
  return x == y or (not exactly and abs(x - y) <= DECIMALS_AGREE * max(abs(x), abs(y)))


# ---------------------------------------------------------------------------------- multiple choice

_CHOICE = re.compile(r"(?:(?:option|choice|answer)\s+)?\(?([A-J])(?:[).:]|$)", re.IGNORECASE)
_OPTION = re.compile(r"(?<![A-Za-z0-9\\])\(?([A-J])\s*[).](?![A-Za-z0-9])\s*\}?\)?|\(([A-J])\)\}?")


def choice(form: str) -> str | None:
  """Returns the letter of the option that a normal form names: B, (B), B) 12, option B; or None."""
  match = _CHOICE.match(form)
  return match[1].upper() if match else None


def options(problem: str) -> dict[str, str]:
  """Returns {letter: text} of the options that a problem lists; empty if it lists none."""
  found, letters = {}, "ABCDEFGHIJ"
  marks = list(_OPTION.finditer(problem))
  for mark, after in zip(marks, [*marks[1:], None]):
    letter = mark[1] or mark[2]
    if letter == "A":
      found = {}  # "A" begins a list; the options are the last list of the problem
    # Letters must be in order, so that "(C)" inside a text is not an option.
    if letter == letters[len(found)]:
      text = problem[mark.end() : after.start() if after else None]
      found[letter] = re.sub(r"\\end\{.*|\\text(?:bf)?\{?\(?$|\\\\|&", " ", text).strip()
  return found if len(found) > 1 else {}
