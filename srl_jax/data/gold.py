"""Extracts gold answers from the columns of data sets."""

import re

# The last line of a solution of GSM8K: "#### 18".
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)\s*\Z")


def gold_answer(value: str | int | float | None) -> str | None:
  """Returns the gold answer in a field's value, or None if there is none.

  A text whose last line is "#### 18" (GSM8K) gives "18", unless it contains a boxed answer. NaN,
  which pandas writes for missing cells, gives None. A float with an integer value loses its
  fraction: AMC lists 27.0 for the answer 27.
  """
  if isinstance(value, float):
    if value != value:  # NaN
      return None
    value = int(value) if value.is_integer() else value
  text = "" if value is None else str(value).strip()
  hashes = None if "\\boxed" in text else _HASHES.search(text)
  return (hashes[1].strip() if hashes else text) or None
