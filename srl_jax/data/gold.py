"""Gold answers as the columns of data sets have them."""

import re

# The last line of a solution of GSM8K: "#### 18".
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)\s*\Z")


def gold_answer(value: str | int | float | None) -> str | None:
  """Returns the gold answer that a field holds, or None where it has none.

  Of a text whose last line is "#### 18" that is what follows the signs, unless it has a box. A JSON
  NaN, which tables with holes have, is no answer. A float without a fraction is a whole number:
  AMC's answers are 27.0.
  """
  if isinstance(value, float):
    if value != value:
      return None
    value = int(value) if value.is_integer() else value
  text = "" if value is None else str(value).strip()
  hashes = None if "\\boxed" in text else _HASHES.search(text)
  return (hashes[1].strip() if hashes else text) or None
