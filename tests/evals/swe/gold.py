"""Gold patches as edits, and files in which a patch fits."""

import difflib
import re

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_NO_END = "\\ No newline at end of file"


def files_of(patch):
  """({path: old text}, {path: new text}): the patch's lines in place, other lines around them."""
  old, new, path = {}, {}, None
  for line in patch.split("\n"):
    if line.startswith("+++ b/"):
      path = line.removeprefix("+++ b/")
      old[path], new[path] = [], []
    elif path and (hunk := _HUNK.match(line)):
      while len(old[path]) < int(hunk[1]) - 1:
        between = f"# line {len(old[path])} of {path}"
        old[path].append(between)
        new[path].append(between)
    elif line.startswith("diff --git"):
      path = None
    elif path and line[:1] in ("-", " "):
      old[path].append(line[1:])
    if path and line[:1] in ("+", " ") and not line.startswith("+++ "):
      new[path].append(line[1:])
  end = "" if _NO_END in patch else "\n"
  return [{name: "\n".join(lines) + end for name, lines in side.items()} for side in (old, new)]


def hunks_of(patch):
  """The lines of a patch without index lines and without what git adds behind @@."""
  lines = []
  for line in patch.rstrip("\n").split("\n"):
    if not line.startswith("index "):
      hunk = _HUNK.match(line)
      lines.append(hunk[0] if hunk else line)
  return lines


def edits_between(path, old, new):
  """[(path, SEARCH lines, REPLACE lines)]: changes with as many lines around as name one place."""
  a, b = old.split("\n"), new.split("\n")
  if a[-1] == b[-1] == "":
    a, b = a[:-1], b[:-1]
  blocks = []
  for tag, i, j, k, l in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
    if tag == "equal":
      continue
    before = after = 0
    while _count(a, a[i - before : j + after]) != 1:
      before += i - before > 0
      after += j + after < len(a)
    context = a[i - before : i], a[j : j + after]
    blocks.append((path, context[0] + a[i:j] + context[1], context[0] + b[k:l] + context[1]))
  return _joined(blocks, a, b)


def _count(lines, run):
  if not run:
    return 0
  return sum(lines[i : i + len(run)] == run for i in range(len(lines)))


def _joined(blocks, a, b):
  """The blocks, or one of all changes where the context of one would hold another's lines."""
  text = a
  for _, search, replace in blocks:
    if _count(text, search) != 1:
      return [_one(blocks[0][0], a, b)]
    at = next(i for i in range(len(text)) if text[i : i + len(search)] == search)
    text = text[:at] + replace + text[at + len(search) :]
  return blocks if text == b else [_one(blocks[0][0], a, b)]


def _one(path, a, b):
  head = 0
  while head < min(len(a), len(b)) and a[head] == b[head]:
    head += 1
  tail = 0
  while tail < min(len(a), len(b)) - head and a[-1 - tail] == b[-1 - tail]:
    tail += 1
  head, tail = max(0, head - 3), max(0, tail - 3)
  return path, a[head : len(a) - tail], b[head : len(b) - tail]
