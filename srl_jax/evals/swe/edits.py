"""SEARCH/REPLACE edits: from the text of a response to new contents of files.

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

Where we differ from Agentless Mini: a response is read line by line and not by a pattern, so a
fence inside a docstring does not end an edit; any word after the fence is accepted (and counted as
lenient); SEARCH is a run of whole lines, not any piece of text; an empty REPLACE deletes. As there:
several edits may be in one fence and share its path, SEARCH is exact, every occurrence is replaced,
and an edit that fails is dropped while the others still count.
"""

import dataclasses
from collections.abc import Mapping, Sequence

SEARCH, DIVIDER, REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
FENCE = "```"
STRICT_WORD = "python"

# What became of an edit. The first two are in the patch.
APPLIED, SEVERAL = "applied", "several"
# Malformed: the text between the markers is not an edit.
UNCLOSED, NO_DIVIDER, NO_PATH, NO_FENCE = "unclosed", "no_divider", "no_path", "no_fence"
MALFORMED = (UNCLOSED, NO_DIVIDER, NO_PATH, NO_FENCE)
# Well-formed, and without effect.
NOT_SHOWN, EMPTY_SEARCH, NOT_FOUND = "not_shown", "empty_search", "not_found"
OVERLAPS, NO_CHANGE, REPEATED = "overlaps", "no_change", "repeated"


@dataclasses.dataclass(frozen=True)
class Edit:
  """A block between SEARCH and REPLACE markers.

  Attributes:
    path: of the file, "" where the response names none.
    body: the lines between the two markers, without line ends.
    malformed: a reason of MALFORMED, or None.
    lenient: the fence has another word than "python", so Agentless Mini would not read it.
  """

  path: str
  body: tuple[str, ...]
  malformed: str | None = None
  lenient: bool = False

  def readings(self) -> list[tuple[list[str], list[str]]]:
    """The pairs of SEARCH and REPLACE lines; more than one where a text has a divider in it."""
    pairs = []
    for i, line in enumerate(self.body):
      if line.rstrip() == DIVIDER:
        pairs.append((list(self.body[:i]), list(self.body[i + 1 :])))
    return pairs


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of an edit.

  Attributes:
    path: the edit's.
    outcome: one of the words above.
    found: how often SEARCH was found.
    ambiguous: several of its lines could be the divider, by what the file holds.
    lenient: the edit's.
  """

  path: str
  outcome: str
  found: int = 0
  ambiguous: bool = False
  lenient: bool = False


def parse(text: str) -> list[Edit]:
  """Returns the edits of a response, malformed ones included, in their order.

  Args:
    text: the response without its monologue.
  """
  lines = text.split("\n")
  edits, path, word = [], "", None  # word: what follows the open fence's back-ticks; None: no fence
  at = 0
  while at < len(lines):
    line = lines[at].strip()
    if line.startswith(FENCE):
      word = line.strip("`").strip().lower() if word is None else None
      path = ""
    elif line == SEARCH:
      edit, at = _read_edit(lines, at + 1, path, word)
      edits.append(edit)
      continue
    elif word is not None and line:
      path = clean_path(line)
    at += 1
  return edits


def _read_edit(lines: Sequence[str], at: int, path: str, word: str | None) -> tuple[Edit, int]:
  """Returns the edit whose body begins at lines[at], and the index of the line after it."""
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
  # The line after an unclosed edit is the next edit's marker.
  return Edit(path, body, malformed, word != STRICT_WORD), end + (malformed != UNCLOSED)


def clean_path(line: str) -> str:
  """Returns a line without what models write around a path: #, back-ticks, quotes, bullets, ./ ."""
  path = line.strip().lstrip("#").strip()
  if path.startswith(("- ", "* ")):
    path = path[2:].strip()
  path = path.strip("`'\"").strip()
  return path.removeprefix("./")


def render(edits: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> str:
  """Returns edits, (path, SEARCH lines, REPLACE lines) each, as a response; `parse` reads it."""
  blocks = []
  for path, search, replace in edits:
    lines = [f"{FENCE}{STRICT_WORD}", f"### {path}", SEARCH, *search, DIVIDER, *replace, REPLACE]
    blocks.append("\n".join([*lines, FENCE]))
  return "\n\n".join(blocks)


# ---------------------------------------------------------------------------------- applying


def apply(edits: Sequence[Edit], files: Mapping[str, str]) -> tuple[dict[str, str], list[Outcome]]:
  """Applies edits in their order.

  SEARCH has to be in the file as it was shown; it is then replaced in the text as the edits before
  have left it.

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
  """Returns the new text and the outcome."""
  readings = [(search, replace) for search, replace in edit.readings() if search]
  if not readings:
    return text, Outcome(edit.path, EMPTY_SEARCH)
  lines = _split(original)[0]
  usable = [(search, replace) for search, replace in readings if _find(lines, search)]
  if not usable:
    return text, Outcome(edit.path, NOT_FOUND)
  # Of two readings that fit, the longer SEARCH has the divider's line where the file has it too.
  search, replace = usable[-1]
  if search == replace:
    return text, Outcome(edit.path, NO_CHANGE)
  places = _find(_split(text)[0], search)
  if not places:  # an edit before this one has changed these lines
    return text, Outcome(edit.path, OVERLAPS)
  kind = SEVERAL if len(places) > 1 else APPLIED
  outcome = Outcome(edit.path, kind, len(places), ambiguous=len(usable) > 1)
  return _replace(text, places, search, replace), outcome


def _split(text: str) -> tuple[list[str], list[str]]:
  """Returns a text's lines and the end of each: "\\n", "\\r\\n", or "" for a last one without.

  Only line feeds separate lines: str.splitlines would also cut at form feeds and others.
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
  """Returns where a run of lines begins, without overlaps."""
  places, at, n = [], 0, len(search)
  while at + n <= len(lines):
    if lines[at] == search[0] and list(lines[at : at + n]) == list(search):
      places.append(at)
      at += n
    else:
      at += 1
  return places


def _replace(text: str, places: list[int], search: list[str], replace: list[str]) -> str:
  """Replaces the lines at `places`. Lines that SEARCH and REPLACE share keep their bytes.

  New lines end as the file's lines there, and a last line without a line end stays without.
  """
  head = 0  # lines that both begin with
  while head < min(len(search), len(replace)) and search[head] == replace[head]:
    head += 1
  tail = 0  # lines that both end with
  while tail < min(len(search), len(replace)) - head and search[-1 - tail] == replace[-1 - tail]:
    tail += 1
  new = replace[head : len(replace) - tail]
  lines, ends = _split(text)
  unended = bool(ends) and not ends[-1]
  for place in reversed(places):
    begin, end = place + head, place + len(search) - tail
    line_end = next((e for e in ends[place:] if e), "") or next((e for e in ends if e), "\n")
    if unended:
      ends[-1] = line_end  # for the time of the change; the last line may become another one
    lines[begin:end] = new
    ends[begin:end] = [line_end] * len(new)
  if unended and ends:
    ends[-1] = ""
  return "".join(line + end for line, end in zip(lines, ends))
