"""Rewrites unusual spellings of step labels into the forms that data.solutions reads.

`canonical` changes only the label at the start of a line, so that the text after it remains a
suffix of the line. Labels that may be something else (a decimal number, a row of a table, a
sentence that begins with "Step 2 gives") are left unchanged.
"""

import re

# The forms that data.solutions reads, for error messages.
READ = '"1. text", "1) text", "**1. Title** text", "### Step 1: Title", "Step 1: text"'

_DIGITS = {digit: i for i, digit in enumerate("一二三四五六七八九", start=1)}
# A number from 1 to 99, in digits or in Chinese numerals.
_NUMBER = r"(?P<number>[1-9][0-9]?|[一二三四五六七八九]?十?[一二三四五六七八九]?)"
_CHINESE = re.compile(
  rf"(?P<before>[\s#*_]*)(?:步骤\s*{_NUMBER}|第\s*{_NUMBER.replace('number', 'ordinal')}\s*步)"
  r"(?P<mark>\s*[:：.、，,])?"
)
# The word of other languages, before or ("1단계") after the number.
_FOREIGN = re.compile(
  r"(?P<before>\s*+(?:>\s*+|[-+•*]\s++)?(?:\#{1,6}\s*+)?[*_]{0,3}+)"
  r"(?:(?:Schritt|[EÉ]tape|Paso|Passo|Passaggio|Stap|Шаг|Крок|ステップ|手順|단계)\s*+(?=[1-9])"
  r"|(?P<number>[1-9][0-9]?)\s?단계)",
  re.I,
)
# Prefixes without a meaning in front of "Step N": a quotation mark, a bullet, a LaTeX command. The
# possessive quantifiers "++", "*+" and "?+" never backtrack, so every pattern takes linear time.
_PREFIX = re.compile(
  r"(?P<indent>\s*+)(?:>\s*+|[-+•*]\s++)(?=[*_#\s]{0,6}(?:\\textbf\{)?step\s*+\d)", re.I
)
_LATEX = re.compile(r"(?P<indent>\s*+)\\textbf\{(?P<inside>\s*+(?:step\s*+)?\d[^{}]*+)\}", re.I)
_EMPHASIS = re.compile(
  r"(?P<indent>\s*+)(?:\*{3}|\*|_)(?P<label>step\s*+\d[^*_]*+)(?:\*{3}|\*|_)", re.I
)
_HEADING = re.compile(r"(?P<indent>\s*+#{1,6})(?=step\s*+\d|\d{1,2}[.)])", re.I)
# The markup around a label -> ours.
_MARKUP = (
  (_FOREIGN, r"\g<before>Step \g<number>"),
  (_PREFIX, r"\g<indent>"),
  (_LATEX, r"\g<indent>**\g<inside>**"),
  (_EMPHASIS, r"\g<indent>**\g<label>**"),
  (_HEADING, r"\g<indent> "),
)
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_STEP = re.compile(
  r"(?P<before>[\s#]*+(?:\*\*|__)?+\s*+)step[\s#-]*+"
  rf"(?P<number>[1-9][0-9]{{0,2}}|{'|'.join(_WORDS)})"
  r"(?:\s*+/\s*+\d{1,3}|\s++of\s++\d{1,3})?"  # "Step 1/3", "Step 1 of 3"
  r"(?:\s*+\((?P<title>[^()]{1,80})\))?"  # "Step 1 (Add):"
  r"(?P<mark>\s*+(?:\*\*|__)?+\s*+(?:[:：)]|\.(?!\d)))?(?P<rest>.*)",
  re.I | re.S,
)
# "1.Text", "1、Text", "1．Text", "1： Text", "1）Text"; not "1.5", "1、2、3 are odd" or "1：2".
_TIGHT = re.compile(
  r"(?P<before>[\s#*_]*[1-9][0-9]?)"
  r"(?P<mark>[.)](?=[^\W\d_])|[．）]|、(?![0-9]{1,9}[、和])|：(?!\s*+[0-9.]{1,9}\s*+$))\s*"
)
_BRACKETS = re.compile(r"(?P<indent>\s*)[(（](?P<number>[1-9][0-9]?)[)）]\s*")
_NUMBER_HEADING = re.compile(r"(?P<before>\s*#{1,6}\s*[1-9][0-9]?)\s*$")


def canonical(line: str) -> str:
  """Returns the line with its label in a form that data.solutions reads, if it has a label."""
  line = line.removeprefix("\ufeff")
  # Each of these applies to the result of those before.
  for pattern, template in _MARKUP:
    match = pattern.match(line)
    if match:
      line = match.expand(template) + line[match.end() :]
  # At most one of these applies, in this order: "Step 1." must not be read as a bare number.
  for pattern, rewrite in _REWRITES:
    match = pattern.match(line)
    if match:
      return rewrite(match, line)
  return line


def _chinese(match: re.Match[str], line: str) -> str:
  """ "步骤1：" and "第一步：" become "Step 1:"."""
  number = _value(match["number"] or match["ordinal"] or "")
  if not number:
    return line
  return f"{match['before']}Step {number}: {line[match.end() :].lstrip()}"


def _value(text: str) -> int:
  """Returns a number below 100 written in digits or Chinese numerals; 0 if it is none."""
  if text.isdigit():
    return int(text)
  tens, ten, ones = text.partition("十")
  # 十 is 10, 十二 is 12, 二十 is 20: a digit before it counts tens, one after it ones.
  if not ten:
    return _DIGITS.get(text, 0)
  return 10 * _DIGITS.get(tens, 1) + _DIGITS.get(ones, 0)


def _step(match: re.Match[str], line: str) -> str:
  """ "Step1:", "Step 1/3:", "Step 1 (Add):" and a "Step 1" that is alone on its line."""
  before, number, rest = match["before"], match["number"], match["rest"]
  bold = before.strip().endswith(("**", "__"))
  alone = not rest.strip("*_ \t\r")
  if not match["mark"] and not alone:
    return line  # "Step 2 gives ...": a sentence
  if number.lower() in _WORDS:
    number = _WORDS.index(number.lower()) + 1
  if match["title"] and not bold:
    return f"{before}**Step {number}: {match['title']}**{rest}"
  mark = (match["mark"] or ":").replace("：", ":").lstrip()
  if match["title"]:
    mark = f": {match['title']}{mark}"
  # _LABEL of data.solutions requires a space after the mark.
  gap = " " if rest and not rest.startswith((" ", "\t", "\r", "*", "_")) else ""
  return f"{before}Step {number}{mark}{gap}{rest}"


def _tight(match: re.Match[str], line: str) -> str:
  """Returns the line with "1.", where it had "1.Text" or "1、"."""
  return f"{match['before']}. {line[match.end() :]}"


def _brackets(match: re.Match[str], line: str) -> str:
  """Returns the line with "1)" where it had "(1)"."""
  return f"{match['indent']}{match['number']}) {line[match.end() :]}"


def _number_heading(match: re.Match[str], line: str) -> str:
  """Returns a heading that is only a number with a dot: "### 1."."""
  del line
  return f"{match['before']}."


_REWRITES = (
  (_CHINESE, _chinese),
  (_STEP, _step),
  (_NUMBER_HEADING, _number_heading),
  (_TIGHT, _tight),
  (_BRACKETS, _brackets),
)
