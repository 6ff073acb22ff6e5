"""Splits an expert's numbered solution into preamble, steps and conclusion (paper, 4.2 and 5.1).

Teachers number their steps as `1. **Title**:`, as `### Step 1: Title`, or plainly as `1.`, with
small variations of each. Steps contain nested lists, code and headings themselves, so a line is
the head of a step only if it looks like the other heads (same kind, same indentation) and carries
the next number of 1, 2, 3, ... No text is dropped: preamble, steps and conclusion joined together
are the solution, apart from white space and the horizontal rules between them.
"""

import bisect
import dataclasses
import re
import sys

from srl_jax.data import step_labels


@dataclasses.dataclass(frozen=True)
class Step:
  """One numbered step of a solution.

  Attributes:
    number: 1, 2, 3, ...
    title: its title without markup, or None if the step has none.
    body: the text after the title (or the number, where there is no title).
    text: the whole step as the expert wrote it, number and title included.
  """

  number: int
  title: str | None
  body: str
  text: str


@dataclasses.dataclass(frozen=True)
class Solution:
  """A solution split into three parts.

  Attributes:
    preamble: the text before step 1; the whole text if there are no steps.
    steps: numbered 1, 2, 3, ... without gaps.
    conclusion: the text after the last step's block.
  """

  preamble: str
  steps: list[Step]
  conclusion: str


@dataclasses.dataclass(frozen=True)
class _Head:
  """The first line of a candidate step.

  `line` is its index in the solution, `rest` the text after the title on the same line. `kind` is
  (heading or list item, depth, label style, bold or plain), see `_head`. Kinds sort from the
  outermost structure to the innermost: headings before list items, shallow before deep, "Step N"
  before "N.", bold before plain. All heads of one solution have the same kind.
  """

  line: int
  number: int
  kind: tuple[int, int, int, int]
  title: str | None
  rest: str

  @property
  def is_heading(self) -> bool:
    return self.kind[0] == 0


# Solutions are model output, so every pattern must take linear time. The possessive quantifiers
# "++" and "*+" never backtrack; they are used wherever the next part of a pattern could match the
# same characters.
_RULE = re.compile(r"\s*(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$")
_FENCE = re.compile(r"\s*+(`{3,}+|~{3,}+)\s*+(\w*+)[^`]*+$")
_HEADING = re.compile(r"\s*#{1,6}\s+(.*)")
# A step's label: optional heading marks, bold and "Step", then the number, and a mark such as "."
# or ":". `bold_end` is set if the bold text ends right after the number ("**3**.").
_LABEL = re.compile(
  r"(?P<indent>\s*)(?:(?P<hashes>\#{1,6})\s+)?(?:(?P<bold>\*\*|__)\s*)?(?P<step>step\s+)?"
  r"(?P<number>[1-9][0-9]{0,2})(?P<bold_end>\*\*|__)?(?P<mark>[.:)]|\s+[-–—](?=\s))?"
  r"(?P<rest>(?:\*\*|__|\s|$).*)",
  re.IGNORECASE | re.DOTALL,
)
_BOLD = re.compile(r"\s*(\*\*|__)(?P<inside>.+?)\1(?P<after>.*)", re.DOTALL)
# Between a bold title and the text after it.
_SEPARATOR = re.compile(r"\s*(?:[:.]|[-–—](?=\s))\s*")
# Words that introduce a conclusion. As a heading they may be followed by anything; as a label they
# must be bold or end in a colon; a paragraph needs a fuller phrase, or begins with a box.
_ENDING = (
  r"(?:the\s+)?(?:final\s+(?:answer|result|solution|conclusion)s?|answer|conclusion|summary|"
  r"conclusive\s+summary|(?:final\s+)?json\s+output)"
)
_ENDING_HEADING = re.compile(_ENDING + r"(?:\s*[:.].*)?", re.IGNORECASE | re.DOTALL)
_ENDING_LABEL = re.compile(
  r"\s*(?:(?:\*\*|__)" + _ENDING + r"\s*+[:.]?\s*+(?:\*\*|__)|" + _ENDING + r"\s*:)", re.IGNORECASE
)
_ENDING_PARAGRAPH = re.compile(
  r"\s*(?:\*\*)?(?:(?:thus|therefore|hence|so|finally|consequently),?\s+)?"
  r"(?:in\s+conclusion\b|(?:the|our)\s+(?:(?:final|correct|required|desired)\s+)*answer\b)"
  r"|[\s$\\\[\](*]*\\(?:boxed|fbox)\b",
  re.IGNORECASE,
)
# A solution inside a JSON string ends with the quotation mark; the next line may be the next key.
_JSON_END = re.compile(r"[\s-]*\",?\s*$|\s*\"\w+\"\s*:")
SECTIONS = 6  # so many unnumbered headings divide a text; fewer occur in solutions with steps
_NOWHERE = sys.maxsize  # returned by `_first` if there is no such head; larger than every index
# Info strings of fenced blocks that may hold a whole solution instead of code.
_PROSE = ("", "json", "latex", "markdown", "md", "tex", "text", "txt")


def split_steps(text: str) -> list[Step]:
  """Returns the numbered steps of a solution, [] if it has none. Never raises."""
  return split_solution(text).steps


def split_solution(text: str) -> Solution:
  """Returns preamble, numbered steps and conclusion of a solution. Never raises.

  A boxed answer inside the last step's own lines stays in that step. The conclusion is the text
  after the last step's block (an unindented paragraph after an indented list item, a heading no
  deeper than the step's own, a rule) or under a heading such as "Final Answer" or "Conclusion".
  """
  lines = text.split("\n")
  heads = _outline(_heads(lines, _fenced(lines)))
  sections = len(heads) < 2 and _has_sections(lines)
  if len(heads) < 2 and not sections:
    # Unusual spellings of labels, only as a second attempt: text with ordinary steps may use these
    # forms to number other things.
    rewritten = list(map(step_labels.canonical, lines))
    heads = _outline(_heads(rewritten, _fenced(lines))) or heads
  if len(heads) < 2 and not sections:
    # Some teachers wrap the whole solution in a fenced block of prose or JSON.
    heads = _outline(_heads(lines, _fenced(lines, unfenced=_PROSE))) or heads
  if not heads:
    return Solution(_trim(lines), [], "")
  starts = [head.line for head in heads]
  # Each step's block ends where the next begins; the last one extends to the end of the text.
  blocks = [lines[start:stop] for start, stop in zip(starts, [*starts[1:], len(lines)])]
  end = _block_end(heads[-1], blocks[-1], blocks[:-1])
  conclusion, blocks[-1] = blocks[-1][end:], blocks[-1][:end]
  steps = list(map(_step, heads, blocks))
  return Solution(_trim(lines[: starts[0]]), steps, _trim(conclusion))


def _has_sections(lines: list[str]) -> bool:
  """Returns whether unnumbered headings divide the text, so that its lists belong to sections."""
  headings = [line for line in lines if _HEADING.match(line) and not _is_ending(line, True)]
  return len(headings) >= SECTIONS and not any(_head(0, line) for line in headings)


def _step(head: _Head, block: list[str]) -> Step:
  """Returns a step from its head and the lines of its block, the head's line included."""
  return Step(head.number, head.title, _trim([head.rest, *block[1:]]), _trim(block))


def _trim(lines: list[str]) -> str:
  """Returns the lines as one text without blank lines and rules at either end."""
  start, stop = 0, len(lines)
  while start < stop and _is_blank_or_rule(lines[start]):
    start += 1
  while start < stop and _is_blank_or_rule(lines[stop - 1]):
    stop -= 1
  return "\n".join(lines[start:stop]).strip()


def _is_blank_or_rule(line: str) -> bool:
  return not line.strip() or _RULE.match(line) is not None


def _indent(line: str) -> int:
  """Returns the width of a line's indentation; tab stops are 4 columns apart, as in Markdown."""
  line = line.expandtabs(4)
  return len(line) - len(line.lstrip())


def _plain(title: str) -> str | None:
  """Returns a title without markup and closing colon, None if nothing is left."""
  # Underscores count as bold marks only at word boundaries: "x__y" is a name.
  title = re.sub(r"\*\*|__(?=\s|$)|(?:^|(?<=\s))__", "", title).strip()
  title = title.strip("#*_` \t:").removesuffix(".").strip()
  title = re.sub(r"^\(([^()]*)\)$", r"\1", title)  # "Step 1 (Title)"
  return title or None


def _fenced(lines: list[str], unfenced: tuple[str, ...] = ()) -> list[bool]:
  """Returns for each line whether it is inside a code block (of a language not in `unfenced`)."""
  inside: list[bool] = []
  fence, hidden = "", False
  for line in lines:
    match = _FENCE.match(line)
    # A fence is closed by at least as many of the same characters, without an info string.
    closes = fence and match and match[1].startswith(fence) and not match[2]
    if match and not fence:
      fence, hidden = match[1], match[2].lower() not in unfenced
    inside.append(hidden)
    if closes:
      fence, hidden = "", False
  return inside


def _heads(lines: list[str], fenced: list[bool]) -> list[_Head]:
  """Returns every line outside code that could open a step."""
  heads = []
  for i, line in enumerate(lines):
    head = None if fenced[i] else _head(i, line)
    if head:
      heads.append(head)
  return heads


def _head(index: int, line: str) -> _Head | None:
  """Returns the line as the head of a candidate step, or None if it cannot be one."""
  match = _LABEL.match(line)
  if not match:
    return None
  heading, bold, step = match["hashes"], match["bold"], match["step"]
  if not match["mark"] and not (step and (heading or bold)):
    return None  # "Step 2 gives" and "12 apples" begin sentences
  if match["mark"] == ":" and not (step or heading or bold):
    return None  # "2: 7" is a row of a table
  title, rest = _title(match)
  # The tuple of `_Head.kind`. For headings the depth is the number of "#", for list items the
  # indentation; the order of the fields makes an outer structure compare smaller.
  kind = (
    0 if heading else 1,
    (0 if step else 1) if heading else _indent(match["indent"]),
    len(heading) if heading else (0 if step else 1),
    0 if heading or bold or title else 1,
  )
  return _Head(index, int(match["number"]), kind, title, rest)


def _title(match: re.Match[str]) -> tuple[str | None, str]:
  """Returns the title on a head's line, if any, and the rest of the line after it."""
  rest = match["rest"]
  if match["hashes"]:
    return _plain(rest), ""
  if match["bold"]:
    # `**Step 1: Title** rest`; in `**Step 1:** rest` the bold part is the label alone.
    inside, found, after = rest.partition(match["bold"])
    if match["bold_end"] or not found:
      return None, rest
    separator = _SEPARATOR.match(after)
    return _plain(inside), after[separator.end() :] if separator else after
  bold = _BOLD.match(rest)
  if not bold:
    return None, rest
  # In `1. **Four** is even` the bold word belongs to the sentence: a title needs a separator after
  # it, punctuation inside it, or the line to itself.
  separator = _SEPARATOR.match(bold["after"])
  if separator:
    return _plain(bold["inside"]), bold["after"][separator.end() :]
  if bold["inside"].rstrip().endswith((":", ".")) or not bold["after"].strip():
    return _plain(bold["inside"]), bold["after"]
  return None, rest


def _outline(heads: list[_Head]) -> list[_Head]:
  """Returns the heads of the outermost numbering with two steps or more, else with one."""
  of_indentation: dict[tuple[int, ...], list[_Head]] = {}
  for head in heads:
    of_indentation.setdefault(head.kind[:3], []).append(head)
  chains = []
  for kind in sorted({head.kind for head in heads}):
    # A bold list ignores the plain lists nested in it. A plain list includes the bold items of the
    # same indentation, because teachers omit the bold title of some items.
    same = [head for head in of_indentation[kind[:3]] if head.kind <= kind]
    chain = _longest_chain(same)
    # A longer chain that contains the previous one is the same list, now with its plain items.
    if chains and set(chains[-1]) < set(chain):
      chains[-1] = chain
    elif chain:
      chains.append(chain)
  for chain in chains:
    if len(chain) > 1:
      return chain
  return chains[0] if chains else []


def _longest_chain(heads: list[_Head]) -> list[_Head]:
  """Returns the longest list among `heads`, such as the steps after a list of givens.

  A list is a chain of heads numbered 1, 2, 3, ... A list that restarts at 1 inside a step is nested
  in that step, and its items are not heads of the outer list. The heads are visited once, by
  `bisect`, so the search takes O(n log n).
  """
  anywhere, outer = _places(heads)
  best: list[_Head] = []
  chain: list[_Head] = []
  at = _first(anywhere, 1, 0)
  while at < len(heads):
    chain.append(heads[at])
    best = max(best, chain, key=len)
    restart = _first(anywhere, 1, at + 1)
    # Before the next 1, any head with the right number continues the list. After it, only heads
    # outside nested lists do.
    after = _first(anywhere, len(chain) + 1, at + 1)
    if after > restart:
      after = _first(outer, len(chain) + 1, restart)
    if after == _NOWHERE:  # the list ends here, and the next one begins at the next 1
      chain, after = [], restart
    at = after
  return best


def _places(heads: list[_Head]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
  """Returns {number: indices of its heads}, for all heads and for those outside nested lists.

  The nested list that begins at a 1 takes every head that continues its count, so these heads are
  not in the second dict.
  """
  anywhere: dict[int, list[int]] = {}
  outer: dict[int, list[int]] = {}
  nested = 0  # the last number of the list that began at the last 1
  for i, head in enumerate(heads):
    anywhere.setdefault(head.number, []).append(i)
    if head.number == 1:
      nested = 1
    elif nested and head.number == nested + 1:
      nested += 1
    else:
      outer.setdefault(head.number, []).append(i)
  return anywhere, outer


def _first(places: dict[int, list[int]], number: int, start: int) -> int:
  """Returns the first index >= `start` of a head with this number, or _NOWHERE."""
  indices = places.get(number, [])
  k = bisect.bisect_left(indices, start)
  return indices[k] if k < len(indices) else _NOWHERE


def _block_end(head: _Head, block: list[str], earlier: list[list[str]]) -> int:
  """Returns the index of the line in the last step's block at which the conclusion begins.

  A rule, a heading or an unindented paragraph ends the block only if no earlier step contains one,
  and a step keeps at least the first paragraph of its body.
  `head` and `block` (its lines to the end of the text) are the last step's.
  """
  # Earlier steps show which structures this teacher uses inside a step.
  rules_end = headings_end = True
  paragraphs_end = not head.is_heading
  for lines in earlier:
    body = _trim(lines).split("\n")[1:]
    rules_end &= not any(map(_RULE.match, [lines[0], *body]))
    headings_end &= not any(_is_outer_heading(head, line) for line in body)
    paragraphs_end &= not _has_unindented_paragraph([lines[0], *body])
  fenced = _fenced(block)
  # Index of the first line of the fenced block that closes the text, else of its last line.
  closing = len(_trim(block).split("\n"))
  while closing and fenced[closing - 1]:
    closing -= 1
  has_body, above, after_gap = bool(head.rest.strip()), block[0], False
  for i, line in enumerate(block[1:], start=1):
    if _is_blank_or_rule(line):
      after_gap = True
      if line.strip() and has_body and rules_end:
        return i
      continue
    outside = _indent(line) <= _indent(block[0])
    new_paragraph = after_gap and outside and not above.rstrip().endswith((":", ","))
    opening = "\n".join(block[i : i + 2])  # a displayed box is on the line below its bracket
    if fenced[i]:  # code is the step's own, unless a block of it closes the text
      ends = has_body and not fenced[i - 1] and i >= closing
    else:
      ends = (
        _is_ending(line, outside)
        or (headings_end and _is_outer_heading(head, line))
        or (has_body and _JSON_END.match(line))
        or (has_body and new_paragraph and (paragraphs_end or _ENDING_PARAGRAPH.match(opening)))
      )
    if ends:
      return i
    has_body, above, after_gap = True, line, False
  return len(block)


def _has_unindented_paragraph(lines: list[str]) -> bool:
  """Whether a line after a blank one is indented no more than the head, the first line."""
  for above, line in zip(lines, lines[1:]):
    if line.strip() and not above.strip() and _indent(line) <= _indent(lines[0]):
      return True
  return False


def _is_ending(line: str, outside: bool) -> bool:
  """Whether the line is a heading or an unindented label such as "Final Answer:"."""
  heading = _HEADING.match(line)
  if heading:
    return _ENDING_HEADING.fullmatch(heading[1].strip("#*_: \t\r")) is not None
  return outside and _ENDING_LABEL.match(line) is not None


def _is_outer_heading(head: _Head, line: str) -> bool:
  """Whether the line is a heading that is not part of the step below `head`."""
  heading = _HEADING.match(line)
  depth = len(line.strip()) - len(line.strip().lstrip("#"))
  return heading is not None and (not head.is_heading or depth <= head.kind[2])
