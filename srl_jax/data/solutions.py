"""Splits an expert's numbered solution into preamble, steps and conclusion (paper, 4.2 and 5.1).

Teachers number their steps as `1. **Title**:`, as `### Step 1: Title`, or plainly as `1.`, with
small variations of each. Steps have nested lists, code and headings inside them, so
a line is the head of a step only if it looks like the other heads (same kind, same indentation)
and carries the next number of 1, 2, 3, ... Nothing is lost: joined again, the parts are the text,
less white space and the horizontal rules between parts.
"""

import bisect
import dataclasses
import re
import sys

from srl_jax.data import step_labels


@dataclasses.dataclass(frozen=True)
class Step:
  """One numbered step.

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
  """A solution in three parts.

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
  """The first line of what may be a step.

  `kind` sorts from the outermost structure to the innermost: headings before list items, "Step N"
  before "N.", shallow before deep, bold before plain. Heads of one solution share it.
  """

  line: int
  number: int
  kind: tuple[int, int, int, int]
  title: str | None
  rest: str

  @property
  def is_heading(self) -> bool:
    return self.kind[0] == 0


# Texts may be hostile, so every pattern takes linear time: "++" and "*+" never give back what they
# took, wherever another part of the pattern could take the same characters.
_RULE = re.compile(r"\s*(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$")
_FENCE = re.compile(r"\s*+(`{3,}+|~{3,}+)\s*+(\w*+)[^`]*+$")
_HEADING = re.compile(r"\s*#{1,6}\s+(.*)")
_LABEL = re.compile(
  r"(?P<indent>\s*)(?:(?P<hashes>\#{1,6})\s+)?(?:(?P<bold>\*\*|__)\s*)?(?P<step>step\s+)?"
  r"(?P<number>[1-9][0-9]{0,2})(?P<bold_end>\*\*|__)?(?P<mark>[.:)]|\s+[-–—](?=\s))?"
  r"(?P<rest>(?:\*\*|__|\s|$).*)",
  re.IGNORECASE | re.DOTALL,
)
_BOLD = re.compile(r"\s*(\*\*|__)(?P<inside>.+?)\1(?P<after>.*)", re.DOTALL)
_SEPARATOR = re.compile(r"\s*(?:[:.]|[-–—](?=\s))\s*")
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
# The end of a solution inside a JSON string: the quotation mark, the next key.
_JSON_END = re.compile(r"[\s-]*\",?\s*$|\s*\"\w+\"\s*:")
SECTIONS = 6  # headings without numbers; a solution in steps may have some too
_NOWHERE = sys.maxsize  # the place of a head that there is not
_PROSE = ("", "json", "latex", "markdown", "md", "tex", "text", "txt")


def split_steps(text: str) -> list[Step]:
  """Returns the numbered steps of a solution, [] if it has none. Never raises."""
  return split_solution(text).steps


def split_solution(text: str) -> Solution:
  """Returns preamble, numbered steps and conclusion of a solution. Never raises.

  A box inside the last step's own lines stays there. Text after its block (an unindented
  paragraph after an indented list item, a heading no deeper than the step's own, a rule) or under
  a heading such as "Final Answer" or "Conclusion" is the conclusion.
  """
  lines = text.split("\n")
  heads = _outline(_heads(lines, _fenced(lines)))
  if len(heads) < 2 and not _has_sections(lines):
    # Only now: text that has steps in the usual forms may number other things in these.
    rewritten = list(map(step_labels.canonical, lines))
    heads = _outline(_heads(rewritten, _fenced(lines))) or heads
  if len(heads) < 2 and not _has_sections(lines):
    # Some teachers wrap the whole solution in a fenced block of prose or JSON.
    heads = _outline(_heads(lines, _fenced(lines, unfenced=_PROSE))) or heads
  if not heads:
    return Solution(_trim(lines), [], "")
  starts = [head.line for head in heads]
  # A step's block goes from its head to the next one's; the last block, to the end of the text.
  blocks = [lines[start:stop] for start, stop in zip(starts, [*starts[1:], len(lines)])]
  end = _block_end(heads[-1], blocks[-1], blocks[:-1])
  conclusion, blocks[-1] = blocks[-1][end:], blocks[-1][:end]
  steps = list(map(_step, heads, blocks))
  return Solution(_trim(lines[: starts[0]]), steps, _trim(conclusion))


def _has_sections(lines: list[str]) -> bool:
  """Whether headings without numbers divide the text; lists are then parts of its sections."""
  headings = [line for line in lines if _HEADING.match(line) and not _is_ending(line, True)]
  return len(headings) >= SECTIONS and not any(_head(0, line) for line in headings)


def _step(head: _Head, block: list[str]) -> Step:
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
  line = line.expandtabs(4)
  return len(line) - len(line.lstrip())


def _plain(title: str) -> str | None:
  """Returns a title without markup and closing colon, None if nothing is left."""
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
  match = _LABEL.match(line)
  if not match:
    return None
  heading, bold, step = match["hashes"], match["bold"], match["step"]
  if not match["mark"] and not (step and (heading or bold)):
    return None  # "Step 2 gives" and "12 apples" are sentences.
  if match["mark"] == ":" and not (step or heading or bold):
    return None  # "2: 7" is a row of a table.
  title, rest = _title(match)
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
  # In `1. **Four** is even` the bold word is a part of the sentence, no title.
  separator = _SEPARATOR.match(bold["after"])
  if separator:
    return _plain(bold["inside"]), bold["after"][separator.end() :]
  if bold["inside"].rstrip().endswith((":", ".")) or not bold["after"].strip():
    return _plain(bold["inside"]), bold["after"]
  return None, rest


def _outline(heads: list[_Head]) -> list[_Head]:
  """Returns the heads of the outermost numbering that has two steps, else the best with one."""
  of_indentation: dict[tuple[int, ...], list[_Head]] = {}
  for head in heads:
    of_indentation.setdefault(head.kind[:3], []).append(head)
  chains = []
  for kind in sorted({head.kind for head in heads}):
    # A bold list is read alone, so that plain lists nested in it do not count; but single items
    # may have lost their bold title, so a plain list takes the bold items of its indentation.
    same = [head for head in of_indentation[kind[:3]] if head.kind <= kind]
    chain = _longest_chain(same)
    if chains and set(chains[-1]) < set(chain):
      chains[-1] = chain
    elif chain:
      chains.append(chain)
  for chain in chains:
    if len(chain) > 1:
      return chain
  return chains[0] if chains else []


def _longest_chain(heads: list[_Head]) -> list[_Head]:
  """Returns the longest of the lists that follow one another, such as givens and then steps.

  A list is a chain of heads numbered 1, 2, 3, ...; one that restarts at 1 inside a step is nested
  in it, and its items are no heads of the outer list.
  """
  anywhere, outer = _places(heads)
  best: list[_Head] = []
  chain: list[_Head] = []
  at = _first(anywhere, 1, 0)
  while at < len(heads):
    chain.append(heads[at])
    best = max(best, chain, key=len)
    restart = _first(anywhere, 1, at + 1)
    # Up to the next 1 any head may go on with the list; after it, those outside nested lists.
    after = _first(anywhere, len(chain) + 1, at + 1)
    if after > restart:
      after = _first(outer, len(chain) + 1, restart)
    if after == _NOWHERE:  # the list has ended; the next one begins at the next 1
      chain, after = [], restart
    at = after
  return best


def _places(heads: list[_Head]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
  """Returns {number: indices of its heads}, of all heads and of those outside nested lists.

  The list that begins at a 1 takes the heads that count on from it, wherever the outer list is.
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
  """Returns the first place of a number from `start` on, _NOWHERE if there is none."""
  indices = places.get(number, [])
  k = bisect.bisect_left(indices, start)
  return indices[k] if k < len(indices) else _NOWHERE


def _block_end(head: _Head, block: list[str], earlier: list[list[str]]) -> int:
  """Returns the index of the line of the last step's block at which the conclusion begins.

  Rules, headings and unindented paragraphs end it only if the earlier steps have none inside them,
  and a step keeps at least the first paragraph of its body.
  """
  rules_end = headings_end = True
  paragraphs_end = not head.is_heading
  for lines in earlier:
    body = _trim(lines).split("\n")[1:]
    rules_end &= not any(map(_RULE.match, [lines[0], *body]))
    headings_end &= not any(_is_outer_heading(head, line) for line in body)
    paragraphs_end &= not _has_unindented_paragraph([lines[0], *body])
  fenced = _fenced(block)
  closing = len(_trim(block).split("\n"))  # the first line of the code that closes the text
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
