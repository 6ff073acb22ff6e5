"""Final answers: found in a solution, and compared with the gold one.

The protocol is that of Qwen2.5-Math's evaluation, which the paper follows: the last box counts,
then what comes after "the answer is", then the last number; units and ways of writing LaTeX make no
difference; a decimal may be off by one in 10,000. It is stricter than Qwen's where that would pay
for wrong answers: whole numbers must be equal (9999.857 is not 10000), 5 is not 500 unless one of
them is a percentage, an open interval is not a closed one, M is not m, and an infinite or undefined
answer equals only its like.

Most answers are settled here, by text or as plain numbers (`normal_form`). The others go to sympy
in worker processes (`equivalence`, `values`), for sympy may take for ever: an answer such as
9^{9^{9^9}} costs _SECONDS and a worker, and counts as wrong.
"""

import functools
import os
import re
from collections.abc import Sequence

from srl_jax.rewards.normal_form import choice, normal_form, number, options, same_form
from srl_jax.rewards.workers import Workers

_WORKERS = 8  # at most; as many as there are cores
_SECONDS, _MEGABYTES = 1, 1024  # CPU time and memory per comparison; the mean is 0.01 s
_LONGEST = 2000  # characters; no gold answer is a tenth as long, so a longer answer is wrong

# ---------------------------------------------------------------------------------- finding

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# "The answer is 5", "Answer: 5", "answer": 5 (JSON); not "the answer isn't".
_ANNOUNCED = re.compile(
  r"(?:answer(?:\s+is\b|\"?\s*[:：])|答案(?:是|为|[:：]))[\s:：*\"]*", re.IGNORECASE
)
# \boxed 7: up to the end of the formula or the line, as Qwen2.5-Math's parser reads it.
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])[ \t]*(?!\s*\{)([^$\n]+)")
_END_OF_FORMULA = re.compile(r"\\[)\]]")
_MATH = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"-?\d*\.?\d+")
_SPACE = re.compile(r"\s*")
_WORDS = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*$")


def extract_answer(text: str) -> str | None:
  """Returns the final answer of a solution as it is written there, or None if there is none.

  In this order: the content of the last box; what follows the last "answer is" or "answer:", up to
  the end of the formula or the line; the last number.

  Args:
    text: a solution without its think blocks.
  """
  stated = last_boxed(text) or _announced(text)
  if stated:
    return stated
  numbers = _NUMBER.findall(text.replace(",", ""))
  return numbers[-1] if numbers else None


def last_boxed(text: str) -> str | None:
  r"""Returns the content of the last \boxed{} that is not empty, or None.

  A box without braces (\boxed 7) holds what follows, up to the end of the formula or the line. A
  box that the text breaks off in counts, up to the end of its line, if no other box is closed.
  """
  last, opened = None, []  # opened: where the content of each open brace starts, and if it is a box
  for match in _BOX_OR_BRACE.finditer(text):
    token = match[0]
    if token == "}" and opened:
      start, is_box = opened.pop()
      # Nothing is copied here: thousands of nested boxes must not cost their square.
      if is_box and _SPACE.match(text, start).end() < match.start():
        last = start, match.start()
    elif token == "{" or token.startswith((r"\boxed", r"\fbox")):
      opened.append((match.end(), token != "{"))
  bare = _bare_box(text, after=last[1] if last else 0)
  if bare or last:
    return bare or text[slice(*last)].strip()
  broken_off = [start for start, is_box in opened if is_box]
  return text[broken_off[-1] :].strip().split("\n")[0] or None if broken_off else None


def _bare_box(text: str, after: int) -> str | None:
  """The content of the last box without braces after a position."""
  found = None
  for match in _BARE_BOX.finditer(text, after):
    found = match[1]
  if found is None:
    return None
  return _END_OF_FORMULA.split(found)[0].strip().rstrip(".,;。") or None


def _announced(text: str) -> str | None:
  """What follows the last announcement: the formula that stands there, or else the line."""
  parts = _ANNOUNCED.split(text)
  if len(parts) == 1:
    return None
  formula = _MATH.match(parts[-1])
  found = next(filter(None, formula.groups())) if formula else parts[-1].split("\n")[0]
  found = found.strip("*\"', \t").removesuffix(".").removesuffix("。")
  if found.count("}") > found.count("{"):  # the end of a JSON object
    found = found.rstrip("}\"', ")
  return found.strip() or None


# ---------------------------------------------------------------------------------- comparing


def answers_equal(predicted: str | None, gold: str, *, problem: str | None = None) -> bool:
  """Returns whether two final answers mean the same; safe for any input.

  Args:
    predicted: from `extract_answer`; None counts as wrong. Of a text that boxes or announces its
      answer, that answer is compared.
    gold: the reference; likewise of a text that boxes or announces it.
    problem: text of the problem. If it lists options and the gold answer is the letter of one, the
      option's own text is right, too.
  """
  return equal_pairs([(predicted, gold)], [problem])[0]


def equal_pairs(
  pairs: Sequence[tuple[str | None, str]], problems: Sequence[str | None] | None = None
) -> list[bool]:
  """Returns `answers_equal` for each (predicted, gold) and its problem, computed together."""
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
  """Returns for each gold answer whether it is a number, a formula or prose: something to equal.

  Where parsing takes longer than a comparison may, the answer gets the benefit of the doubt.
  """
  forms = [normal_form(last_boxed(gold) or _announced(gold) or gold) for gold in golds]
  asked = list(dict.fromkeys(form for form in forms if not (number(form) or _WORDS.match(form))))
  if not asked:
    return [True] * len(forms)
  count = min(_WORKERS, os.cpu_count() or 1)
  pool = Workers(
    "srl_jax.rewards.equivalence:parses", count, seconds=_SECONDS, megabytes=_MEGABYTES
  )
  verdicts = dict(zip(asked, pool.run(asked)))
  pool.close()
  return [verdicts.get(form) is not False for form in forms]


def _settle(
  predicted: str | None, gold: str, problem: str | None
) -> tuple[bool, list[tuple[str, str]]]:
  """The verdict where it is cheap; otherwise False, and the questions of which one must be true."""
  predicted = predicted and (last_boxed(predicted) or _announced(predicted) or predicted)
  if not predicted or len(predicted) > _LONGEST:
    return False, []
  # Some sources give a worked solution as the answer (s1K does for a part of its rows).
  gold = last_boxed(gold) or _announced(gold) or gold
  answer, golds = normal_form(predicted), [normal_form(gold)]
  letter = choice(golds[0])
  if letter and golds[0].isupper():  # c may be a variable, C is an option
    if choice(answer):
      return choice(answer) == letter, []
    text = options(problem or "").get(letter)
    golds += [normal_form(text)] if text else []
  verdicts = [same_form(answer, g) for g in golds]
  named = _equations(predicted, gold) if len(golds) == 1 else None
  return any(verdicts), [
    named or (answer, g) for g, verdict in zip(golds, verdicts) if verdict is None
  ]


def _equations(predicted: str, gold: str) -> tuple[str, str] | None:
  """Both as equations where one needs its name for it (2x - y = 0 and y = 2x), else None."""
  named = normal_form(predicted, keep_name=True), normal_form(gold, keep_name=True)
  if any("=" not in form for form in named):
    return None
  unnamed = normal_form(predicted), normal_form(gold)
  values_of_one = named[0].split("=")[0].strip() == named[1].split("=")[0].strip()
  return None if values_of_one and not any("=" in form for form in unnamed) else named


@functools.cache
def _pool() -> Workers:
  count = min(_WORKERS, os.cpu_count() or 1)
  return Workers(
    "srl_jax.rewards.equivalence:equivalent", count, seconds=_SECONDS, megabytes=_MEGABYTES
  )
