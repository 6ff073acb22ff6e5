r"""One way of writing a final answer, so that most answers can be compared as text or as numbers.

Undone is what never changes the meaning (delimiters, spacing, names of commands) and what
Qwen2.5-Math's protocol ignores: units, degrees, currency, the `x =` before a value. What comes out
is LaTeX without `$`, or a number as `number` reads it. Everything here takes time linear in the
text, or nearly so: it runs in the trainer's own process.
"""

import re
from fractions import Fraction
from typing import NamedTuple

DECIMALS_AGREE = Fraction(1, 10_000)  # relative

# fmt: off
_SYMBOLS = [
  ("−", "-"), ("–", "-"), ("÷", "/"), ("°C", ""), ("°", ""), ("²", "^2"), ("³", "^3"),
  ("×", r"\times "), ("·", r"\cdot "), ("±", r"\pm "), ("√", r"\sqrt "), ("π", r"\pi "),
  ("θ", r"\theta "), ("∞", r"\infty "), ("≤", r"\le "), ("≥", r"\ge "), ("≠", r"\ne "),
  ("∪", r"\cup "),
]
# fmt: on
_TEXT = r"\\(?:text|mbox|textbf|textrm|textit|mathrm|mathbf|mathit|operatorname)\s*"
_SQUARED = r"(?:\s*\^\s*\{?[23]\}?)?"

# (pattern, replacement): as a calculator or a chat would write it; only in answers without LaTeX.
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

# In this order, each wherever it occurs. `\\` begins a row of a matrix.
_SPELLING = [
  (r"(?<!\\)\\[()\[\]]|\\?\$|\\(?:boxed|fbox)\b", ""),  # delimiters, currency
  (r"\\(?:left|right)(?![a-zA-Z])\.?|\\displaystyle\b|(?<!\\)\\!", ""),
  (r"(?<!\\)\\[,;: ]|~|\\q?quad\b", " "),
  (r"\\[dtc]frac\b", r"\\frac"),
  (r"\\?\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
  (r"\\sqrt\s*(\d+|[a-z])", r"\\sqrt{\1}"),
  (r"\{(?:[bBvp]matrix|array)\}(?:\s*\{[clr| ]*\})?", "{pmatrix}"),
  (r"\\([lgn]e)q(?![a-zA-Z])", r"\\\1"),
  (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b", ""),
  (r"\\%|\s*\bpercent\b", "%"),
  # A text after something is a unit (5 \text{ cm}^2); one elsewhere, or alone, holds words; i and e
  # are numbers in any type face.
  (rf"(?<=[^\s{{(\[,=])\s*{_TEXT}\{{(?!\s*(?:and|or)\b|[eijk]\}})[^{{}}]*\}}{_SQUARED}[\s.]*$", ""),
  (rf"{_TEXT}\{{([^{{}}]*)\}}", r"\1"),
  (r"\s+(?:and|or)\s+", ", "),
]
_DIGITS = r"(?:\d+\.?\d*|\.\d+)"
_UNIT = (
  r"(?:cm|mm|km|kg|ft|lbs?|hrs?|ml|mL|Hz|mph|in(?:ches)?|feet|miles?|yards?|meters?|units?"
  r"|degrees?|radians?|dollars?|cents?|seconds?|minutes?|hours?|days?|years?)"
)
_UNIT_AT_END = re.compile(rf"(?<=[\w}})]) *(?<![A-Za-z]){_UNIT}{_SQUARED}$")
_WORDS_AFTER_NUMBER = re.compile(
  rf"^([+-]?{_DIGITS}(?:e-?\d+)?) +(?!(?:sqrt|sin|cos|tan|log|exp|mod)\b)"
  rf"(?:[A-Za-z]{{3,}}|{_UNIT}|[mgsLJNWVK]\b)[A-Za-z /]*{_SQUARED}$"
)
_TIMES_POWER_OF_TEN = re.compile(
  rf"^([+-]?{_DIGITS})\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{{\s*)?([+-]?\d{{1,3}})(?:\s*\}})?"
)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:, ?\d{3})+(?:\.\d+)?%?")
_WORDS = re.compile(r"(?=.*[A-Za-z]{4})[A-Za-z]+(?:[ '-][A-Za-z]+)*")
_NAMED = re.compile(r"^[A-Za-z]\w?\s*(?:=|\\in(?![a-zA-Z]))\s*(?=[^=]+$)")


def normal_form(answer: str) -> str:
  """Returns the answer in its normal form; two answers with the same one are equal."""
  text = answer.strip("`*\"' \n")
  if "\\" not in text:
    text = _rewrite(text, _TYPED)
  for symbol, latex in _SYMBOLS:
    text = text.replace(symbol, latex)
  text = _rewrite(text, _SPELLING).strip("`*\"' \n:;,").rstrip(".:;, ")
  text = _TIMES_POWER_OF_TEN.sub(r"\1e\2", text)
  text = _UNIT_AT_END.sub("", text)
  text = _WORDS_AFTER_NUMBER.sub(r"\1", text)
  if _THOUSANDS.fullmatch(text):
    text = text.replace(",", "").replace(" ", "")
  return _NAMED.sub("", text).strip()


def squeeze(form: str) -> str:
  """Returns a normal form without space, case, and braces around one character."""
  return re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s+", "", form)).lower()


def _rewrite(text: str, rules: list[tuple[str, str]]) -> str:
  for pattern, replacement in rules:
    text = re.sub(pattern, replacement, text)
  return text


# ---------------------------------------------------------------------------------- numbers


class Number(NamedTuple):
  """A plain number: its value, whether it was written without decimals, and with a percent sign."""

  value: Fraction
  exact: bool
  percent: bool


_NUMBER = re.compile(
  # 3e-5 and 3e05 are powers of ten; 3e+5 is more likely Euler's number and a sum.
  rf"([+-]?)(?:({_DIGITS})(e-?\d{{1,3}})?(?:\s*/\s*({_DIGITS}))?"
  rf"|\\frac\{{({_DIGITS})\}}\{{({_DIGITS})\}})\s*(%?)",
  re.IGNORECASE,
)


def number(form: str) -> Number | None:
  """Returns the plain number that a normal form is (12, -3.5, 4.5e33, 3/4, 20%), or None."""
  match = _NUMBER.fullmatch(form) if len(form) <= 300 else None
  if not match:
    return None
  sign, whole, exponent, below, top, bottom, percent = match.groups()
  top, bottom = (top, bottom) if top else (whole + (exponent or ""), below or "1")
  # 3. and .5 are numbers to everybody but Fraction
  top, bottom = (re.sub(r"\.(?=e|$)", "", x) for x in (top, bottom))
  if Fraction(bottom) == 0:
    return None
  value = Fraction(top) / Fraction(bottom) * (-1 if sign == "-" else 1)
  return Number(value, not re.search(r"[.e]", top + bottom, re.IGNORECASE), bool(percent))


def same_form(a: str, b: str) -> bool | None:
  """Returns whether two normal forms are equal where text or numbers decide, None elsewhere.

  Numbers without decimals must be equal, others agree to DECIMALS_AGREE (Qwen2.5-Math's rule). Of a
  percentage and a plain number, 20% is 20 as well as 0.2.
  """
  if squeeze(a) == squeeze(b):
    return True
  x, y = number(a), number(b)
  if x and y:
    shares = [1, 100] if x.percent != y.percent else [1]
    x, y = (x, y) if x.percent or not y.percent else (y, x)  # the percentage first
    return any(_agree(x.value / share, y.value, x.exact and y.exact) for share in shares)
  if any(_WORDS.fullmatch(side) for side in (a, b)):
    return False  # as products of letters "east" would equal "seat"
  return None


def _agree(x: Fraction, y: Fraction, exactly: bool) -> bool:
  return x == y or (not exactly and abs(x - y) <= DECIMALS_AGREE * max(abs(x), abs(y)))


# ---------------------------------------------------------------------------------- multiple choice

_CHOICE = re.compile(r"(?:(?:option|choice|answer)\s+)?\(?([A-J])(?:[).:]|$)", re.IGNORECASE)
_OPTION = re.compile(r"(?<![A-Za-z0-9\\])\(?([A-J])\s*[).](?![A-Za-z0-9])\s*\}?\)?|\(([A-J])\)\}?")


def choice(form: str) -> str | None:
  """Returns the letter if a normal form names an option: B, (B), B) 12, option B."""
  match = _CHOICE.match(form)
  return match[1].upper() if match else None


def options(problem: str) -> dict[str, str]:
  """Returns the text of each option that a problem lists, by letter; empty if it lists none."""
  found, letters = {}, "ABCDEFGHIJ"
  marks = list(_OPTION.finditer(problem))
  for mark, after in zip(marks, [*marks[1:], None]):
    letter = mark[1] or mark[2]
    if letter == "A":
      found = {}  # the list proper is the last one
    if letter == letters[len(found)]:
      text = problem[mark.end() : after.start() if after else None]
      found[letter] = re.sub(r"\\end\{.*|\\text(?:bf)?\{?\(?$|\\\\|&", " ", text).strip()
  return found if len(found) > 1 else {}
