"""Extracts final answers from solutions and compares them with the gold answer.

The rules are those of Qwen2.5-Math's evaluation, which the paper follows: the last box is the
answer, else the text after "the answer is", else the last number; units and different LaTeX
spellings are ignored; a decimal may be off by a relative 1e-4. They are stricter than Qwen's
wherever Qwen's accept wrong answers: integers must be equal (9999.857 is not 10000), 5 is not 500
unless one of them is a percentage, an open interval is not a closed one, M is not m, and an
infinite or undefined answer equals only the same one.

Most answers are decided here, as text or as plain numbers (`normal_form`). The rest are compared by
sympy in worker processes (`equivalence`, `values`), because sympy may not terminate: an answer such
as 9^{9^{9^9}} uses up _SECONDS, its worker is killed, and it counts as wrong.
"""

import functools
import os
import re
from collections.abc import Sequence

from srl_jax.rewards.normal_form import choice, normal_form, number, options, same_form
from srl_jax.rewards.workers import Workers

_WORKERS = 8  # at most, and no more than there are cores
_SECONDS, _MEGABYTES = 1, 1024  # CPU time and memory per comparison; the mean time is 0.01 s
_LONGEST = 2000  # characters; gold answers are below a tenth of this, so a longer answer is wrong

# ---------------------------------------------------------------------------------- extracting

# Tokens for matching braces. An escaped character such as \{ is one token, so that it is skipped.
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# "The answer is 5", "Answer: 5", "answer": 5 (JSON); not "the answer isn't".
_ANNOUNCED = re.compile(
  r"(?:answer(?:\s+is\b|\"?\s*[:：])|答案(?:是|为|[:：]))[\s:：*\"]*", re.IGNORECASE
)
# \boxed 7: the rest of the formula or of the line, as Qwen2.5-Math's parser reads it.
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])[ \t]*(?!\s*\{)([^$\n]+)")
_END_OF_FORMULA = re.compile(r"\\[)\]]")
_MATH = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"-?\d*\.?\d+")
_SPACE = re.compile(r"\s*")
_WORDS = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*$")


def extract_answer(text: str) -> str | None:
  """Returns the final answer of a solution verbatim, or None if there is none.

  The first of these that exists: the content of the last box; the text after the last "answer is"
  or "answer:", up to the end of the formula or the line; the last number.

  Args:
    text: a solution without its think blocks.
  """
  stated = last_boxed(text) or _announced(text)
  if stated:
    return stated
  numbers = _NUMBER.findall(text.replace(",", ""))  # 1,234 is one number
  return numbers[-1] if numbers else None


def last_boxed(text: str) -> str | None:
  r"""Returns the content of the last \boxed{} that is not empty, or None.

  A box without braces (\boxed 7) contains the rest of the formula or line. If no box is closed, an
  unclosed one (the text was truncated) contains the rest of its line.
  """
  # last: (start, stop) of the content of the last closed box.
  # opened: a stack of open braces, (start of the content, whether it belongs to a box) each.
  last, opened = None, []
  for match in _BOX_OR_BRACE.finditer(text):
    token = match[0]
    if token == "}" and opened:
      start, is_box = opened.pop()
      # Only indices are stored: copying the contents of n nested boxes would cost O(n^2).
      if is_box and _SPACE.match(text, start).end() < match.start():
        last = start, match.start()
    elif token == "{" or token.startswith((r"\boxed", r"\fbox")):
      opened.append((match.end(), token != "{"))
  # A bare box counts only if it follows the last closed one.
  bare = _bare_box(text, after=last[1] if last else 0)
  if bare or last:
    return bare or text[slice(*last)].strip()
  broken_off = [start for start, is_box in opened if is_box]
  return text[broken_off[-1] :].strip().split("\n")[0] or None if broken_off else None


def _bare_box(text: str, after: int) -> str | None:
  """Returns the content of the last box without braces after a position, or None."""
  found = None
  for match in _BARE_BOX.finditer(text, after):
    found = match[1]
  if found is None:
    return None
  return _END_OF_FORMULA.split(found)[0].strip().rstrip(".,;。") or None


def _announced(text: str) -> str | None:
  """Returns the text after the last "answer is": a formula that follows directly, or the line."""
  parts = _ANNOUNCED.split(text)
  if len(parts) == 1:
    return None
  formula = _MATH.match(parts[-1])
  found = next(filter(None, formula.groups())) if formula else parts[-1].split("\n")[0]
  found = found.strip("*\"', \t").removesuffix(".").removesuffix("。")
  if found.count("}") > found.count("{"):  # the answer was the last value of a JSON object
    found = found.rstrip("}\"', ")
  return found.strip() or None


# ---------------------------------------------------------------------------------- comparing


def answers_equal(predicted: str | None, gold: str, *, problem: str | None = None) -> bool:
  """Returns whether two final answers have the same meaning; accepts any text.

  Args:
    predicted: from `extract_answer`; None counts as wrong. If the text boxes or announces an
      answer, that answer is compared.
    gold: the reference; the same applies.
    problem: text of the problem. If it lists options and the gold answer is an option's letter, the
      text of that option is correct too.
  """
  return equal_pairs([(predicted, gold)], [problem])[0]


def equal_pairs(
  pairs: Sequence[tuple[str | None, str]], problems: Sequence[str | None] | None = None
) -> list[bool]:
  """Returns `answers_equal` for each (predicted, gold) pair and its problem.

  The comparisons that need sympy run in one parallel batch.
  """
  # `asked` has (index of the pair, comparison for a worker). A pair may have several comparisons,
  # of which one must be true.
  equal, asked = [], []
  for i, (predicted, gold) in enumerate(pairs):
    verdict, questions = _settle(predicted, gold, problems[i] if problems else None)
    equal.append(verdict)
    asked += [(i, question) for question in questions]
  different = list(dict.fromkeys(question for _, question in asked))
  verdicts = dict(zip(different, _pool().run(different)))
  for i, question in asked:
    equal[i] = equal[i] or bool(verdicts[question])  # None: the comparison cost its worker
  return equal


def parsable(golds: Sequence[str]) -> list[bool]:
  """Returns for each gold answer whether it is a number, a formula or prose.

  An answer that takes too long to parse counts as parsable, so that its row is not dropped.
  """
  forms = [normal_form(last_boxed(gold) or _announced(gold) or gold) for gold in golds]
  asked = list(dict.fromkeys(form for form in forms if not (number(form) or _WORDS.match(form))))
  if not asked:
    return [True] * len(forms)
  # Not `_pool()`: another function runs in these workers, and it is needed once, when data is
  # loaded.
  count = min(_WORKERS, os.cpu_count() or 1)
  pool = Workers(
    "srl_jax.rewards.equivalence:parses", count, seconds=_SECONDS, megabytes=_MEGABYTES
  )
  verdicts = dict(zip(asked, pool.run(asked)))
  pool.close()
  # None: the worker ran out of time or memory.
  return [verdicts.get(form) is not False for form in forms]


def _settle(
  predicted: str | None, gold: str, problem: str | None
) -> tuple[bool, list[tuple[str, str]]]:
  """Returns the verdict if it is cheap to decide, and the comparisons that are left to workers.

  Returns:
    (verdict, comparisons): if `comparisons` is not empty, the answer is right if the verdict or any
    comparison is true.
  """
  predicted = predicted and (last_boxed(predicted) or _announced(predicted) or predicted)
  if not predicted or len(predicted) > _LONGEST:
    return False, []
  # Some sources have a worked solution in the answer column (s1K does in some rows).
  gold = last_boxed(gold) or _announced(gold) or gold
  answer, golds = normal_form(predicted), [normal_form(gold)]
  letter = choice(golds[0])
  if letter and golds[0].isupper():  # "C" is an option; "c" may be a variable
    if choice(answer):
      return choice(answer) == letter, []
    # The text of the option is a second gold answer.
    text = options(problem or "").get(letter)
    golds += [normal_form(text)] if text else []
  # None: text and plain numbers do not decide.
  verdicts = [same_form(answer, g) for g in golds]
  named = _equations(predicted, gold) if len(golds) == 1 else None
  return any(verdicts), [
    named or (answer, g) for g, verdict in zip(golds, verdicts) if verdict is None
  ]


def _equations(predicted: str, gold: str) -> tuple[str, str] | None:
  """Returns both answers as equations if their left sides matter, as in 2x - y = 0 and y = 2x.

  Returns None otherwise.

  `normal_form` removes the "y =" of an answer, which is right for "x = 5" and 5 but would reduce
  these two equations to 0 and 2x.
  """
  named = normal_form(predicted, keep_name=True), normal_form(gold, keep_name=True)
  if any("=" not in form for form in named):
    return None
  unnamed = normal_form(predicted), normal_form(gold)
  values_of_one = named[0].split("=")[0].strip() == named[1].split("=")[0].strip()
  return None if values_of_one and not any("=" in form for form in unnamed) else named


@functools.cache
def _pool() -> Workers:
  """Returns the workers for comparisons; started at the first call and kept."""
  count = min(_WORKERS, os.cpu_count() or 1)
  return Workers(
    "srl_jax.rewards.equivalence:equivalent", count, seconds=_SECONDS, megabytes=_MEGABYTES
  )
