"""SEARCH/REPLACE edits: from the text of a response to the new contents of files.

The format is that of Agentless (OpenAutoCoder/Agentless, agentless/repair/repair.py), which SWE-RL
and the paper use:

    ```python
    ### package/module.py
    <<<<<<< SEARCH
    lines of the file
    =======
    the lines that replace them
    >>>>>>> REPLACE
    ```

Differences from Agentless Mini: a response is parsed line by line and not by a pattern, so that a
fence inside a docstring does not end an edit; any word after the fence is accepted (and counted as
lenient); SEARCH consists of whole lines instead of any text; an empty REPLACE deletes. As there,
several edits may share a fence and its path, SEARCH is exact, every occurrence is replaced, and an
edit that fails is dropped while the others are applied.
"""

import dataclasses
from collections.abc import Mapping, Sequence

SEARCH, DIVIDER, REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
FENCE = "```"
STRICT_WORD = "python"

# Outcomes of an edit. The first two changed the file.
APPLIED, SEVERAL = "applied", "several"
# Malformed: the text between the markers is not an edit.
UNCLOSED, NO_DIVIDER, NO_PATH, NO_FENCE = "unclosed", "no_divider", "no_path", "no_fence"
MALFORMED = (UNCLOSED, NO_DIVIDER, NO_PATH, NO_FENCE)
# Well-formed, but without effect.
NOT_SHOWN, EMPTY_SEARCH, NOT_FOUND = "not_shown", "empty_search", "not_found"
OVERLAPS, NO_CHANGE, REPEATED = "overlaps", "no_change", "repeated"


@dataclasses.dataclass(frozen=True)
class Edit:
  """A block between SEARCH and REPLACE markers.

  Attributes:
    path: of the file, "" if the response states none.
    body: the lines between the two markers, without line ends.
    malformed: a reason of MALFORMED, or None.
    lenient: whether the word after the fence is not "python", which Agentless Mini requires.
  """

  path: str
  body: tuple[str, ...]
  malformed: str | None = None
  lenient: bool = False

  def readings(self) -> list[tuple[list[str], list[str]]]:
    """Returns all (SEARCH lines, REPLACE lines); several if the text itself contains a divider."""
    pairs = []
    for i, line in enumerate(self.body):
      if line.rstrip() == DIVIDER:
        pairs.append((list(self.body[:i]), list(self.body[i + 1 :])))
    return pairs


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The result of an edit.

  Attributes:
    path: the edit's.
    outcome: one of the constants above.
    found: number of occurrences of SEARCH.
    ambiguous: whether several lines could be the divider, given the file's contents.
    lenient: the edit's.
  """

  path: str
  outcome: str
  found: int = 0
  ambiguous: bool = False
  lenient: bool = False


def parse(text: str) -> list[Edit]:
  """Returns the edits of a response in order, including malformed ones.

  Args:
    text: the response without its monologue.
  """
  lines = text.split("\n")
  # word: the text after the back-ticks of the open fence; None outside fences.
  edits, path, word = [], "", None
  at = 0
  while at < len(lines):
    line = lines[at].strip()
    if line.startswith(FENCE):
      # A fence opens if none is open, and otherwise closes.
      word = line.strip("`").strip().lower() if word is None else None
      path = ""
    elif line == SEARCH:
      edit, at = _read_edit(lines, at + 1, path, word)
      edits.append(edit)
      continue
    elif word is not None and line:
      path = clean_path(line)  # the last line before SEARCH counts
    at += 1
  return edits


def _read_edit(lines: Sequence[str], at: int, path: str, word: str | None) -> tuple[Edit, int]:
  """Returns the edit with its body starting at lines[at], and the index of the line after it."""
  end = at
  while end < len(lines) and lines[end].strip() not in (REPLACE, SEARCH):
    end += 1
  body = tuple(line.removesuffix("\r") for line in lines[at:end])
  malformed = None
  if end == len(lines) or lines[end].strip() == SEARCH:
    malformed = UNCLOSED
  elif not any(line.rstrip() == DIVIDER for line in body):
    malformed = NO_DIVIDER
  elif word is None:
    malformed = NO_FENCE
  elif not path:
    malformed = NO_PATH
  # An unclosed edit ends at the next edit's SEARCH marker, which `parse` must see.
  return Edit(path, body, malformed, word != STRICT_WORD), end + (malformed != UNCLOSED)


def clean_path(line: str) -> str:
  """Returns a path without the decoration that models add: #, back-ticks, quotes, bullets, ./ ."""
  path = line.strip().lstrip("#").strip()
  if path.startswith(("- ", "* ")):
    path = path[2:].strip()
  path = path.strip("`'\"").strip()
  return path.removeprefix("./")


def render(edits: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> str:
  """Returns edits, (path, SEARCH lines, REPLACE lines) each, as a response that `parse` reads."""
  blocks = []
  for path, search, replace in edits:
    lines = [f"{FENCE}{STRICT_WORD}", f"### {path}", SEARCH, *search, DIVIDER, *replace, REPLACE]
    blocks.append("\n".join([*lines, FENCE]))
  return "\n\n".join(blocks)


# ---------------------------------------------------------------------------------- applying


def apply(edits: Sequence[Edit], files: Mapping[str, str]) -> tuple[dict[str, str], list[Outcome]]:
  """Applies edits in order.

  SEARCH is looked up in the file as the policy saw it, and replaced in the text that earlier edits
  left.

  Args:
    edits: from `parse`.
    files: {path: text} of the files that the policy was shown.

  Returns:
    {path: new text} of the files that change, and an outcome for each edit.
  """
  texts, outcomes, seen = dict(files), [], set()
  for edit in edits:
    key = edit.path, edit.body
    if edit.malformed:
      outcome = Outcome(edit.path, edit.malformed)
    elif edit.path not in files:
      outcome = Outcome(edit.path, NOT_SHOWN)
    elif key in seen:
      outcome = Outcome(edit.path, REPEATED)
    else:
      texts[edit.path], outcome = _apply_one(edit, files[edit.path], texts[edit.path])
    seen.add(key)
    outcomes.append(dataclasses.replace(outcome, lenient=edit.lenient))
  changed = {path: text for path, text in texts.items() if text != files[path]}
  return changed, outcomes


def _apply_one(edit: Edit, original: str, text: str) -> tuple[str, Outcome]:
  """Returns the new text and the outcome of one edit.

  Args:
    edit: well-formed.
    original: the file as the policy saw it.
    text: the file after the edits before this one.
  """
  readings = [(search, replace) for search, replace in edit.readings() if search]
  if not readings:
    return text, Outcome(edit.path, EMPTY_SEARCH)
  lines = _split(original)[0]
  usable = [(search, replace) for search, replace in readings if _find(lines, search)]
  if not usable:
    return text, Outcome(edit.path, NOT_FOUND)
  # If several readings match, the longest SEARCH is right: the file has the divider's line too.
  search, replace = usable[-1]
  if search == replace:
    return text, Outcome(edit.path, NO_CHANGE)
  places = _find(_split(text)[0], search)
  if not places:  # an earlier edit changed these lines
    return text, Outcome(edit.path, OVERLAPS)
  kind = SEVERAL if len(places) > 1 else APPLIED
  outcome = Outcome(edit.path, kind, len(places), ambiguous=len(usable) > 1)
  return _replace(text, places, search, replace), outcome


def _split(text: str) -> tuple[list[str], list[str]]:
  """Returns a text's lines and their line ends: "\\n", "\\r\\n", or "" for an unended last line.

  Only line feeds separate lines; str.splitlines would also split at form feeds and others.
  """
  lines, ends = [], []
  pieces = text.split("\n")
  for piece in pieces[:-1]:
    lines.append(piece.removesuffix("\r"))
    ends.append("\r\n" if piece.endswith("\r") else "\n")
  if pieces[-1]:
    lines.append(pieces[-1])
    ends.append("")
  return lines, ends


def _find(lines: Sequence[str], search: Sequence[str]) -> list[int]:
  """Returns the indices at which `search` occurs in `lines`, without overlaps."""
  places, at, n = [], 0, len(search)
  while at + n <= len(lines):
    if lines[at] == search[0] and list(lines[at : at + n]) == list(search):
      places.append(at)
      at += n
    else:
      at += 1
  return places


def _replace(text: str, places: list[int], search: list[str], replace: list[str]) -> str:
  """Returns the text with the lines at `places` replaced; unchanged lines keep their line ends.

  New lines get the line end that the file uses there. A last line without a line end keeps none.

  Args:
    text: of the file.
    places: indices of the first line of each occurrence, ascending.
    search, replace: the lines of the edit.
  """
  head = 0  # number of equal lines at the beginning of both
  while head < min(len(search), len(replace)) and search[head] == replace[head]:
    head += 1
  tail = 0  # number of equal lines at the end of both
  while tail < min(len(search), len(replace)) - head and search[-1 - tail] == replace[-1 - tail]:
    tail += 1
  new = replace[head : len(replace) - tail]
  lines, ends = _split(text)
  unended = bool(ends) and not ends[-1]
  for place in reversed(places):  # from the end, so that earlier indices stay valid
    begin, end = place + head, place + len(search) - tail
    line_end = next((e for e in ends[place:] if e), "") or next((e for e in ends if e), "\n")
    if unended:
      # Temporarily: the change may append lines after what is now the last line.
      ends[-1] = line_end
    lines[begin:end] = new
    ends[begin:end] = [line_end] * len(new)
  if unended and ends:
    ends[-1] = ""
  return "".join(line + end for line, end in zip(lines, ends))
