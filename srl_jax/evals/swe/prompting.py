"""The two prompts: which files to change (localisation), and how to change them (repair).

The wording is ours; the format of the answers is that of Agentless Mini (edits.py), which the paper
uses for Table 4. A file may replace either prompt.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from srl_jax.data.tokenizer import EncodedPrompt
from srl_jax.errors import UserError
from srl_jax.evals.swe import edits, repositories

MOST_FILES = 5  # limit of localisation, as in Agentless Mini

SYSTEM = {
  "plain": "You are a software engineer who fixes issues of code repositories.",
  "think": (
    "You are a software engineer who fixes issues of code repositories.\n"
    "First think inside <think> and </think>. Treat that space as scratch paper: explore, doubt and"
    " correct yourself as freely and for as long as you need. After </think> write the answer in"
    " the form that is wanted."
  ),
}

LOCALIZE = """\
Here is an issue of a code repository.

--- BEGIN ISSUE ---
{issue}
--- END ISSUE ---

These are the Python files of the repository, without its tests. Files are below their folders.

--- BEGIN TREE ---
{tree}
--- END TREE ---

Which files have to be changed to fix the issue? Name at most {n}, the most important one first.
Answer with their full paths and nothing else: one path on each line, with all its folders and
slashes between them, and a line of ``` before the first path and after the last.
"""

REPAIR = """\
Here is an issue of a code repository.

--- BEGIN ISSUE ---
{issue}
--- END ISSUE ---

These are files of the repository, whole, each after a line with its path.

--- BEGIN FILES ---
```
{files}
```
--- END FILES ---

Find the code that is at fault. Then fix the issue with SEARCH/REPLACE edits. The form of an edit:

1. a fence that begins with ```python
2. a line with the path of the file: ### path
3. the line <<<<<<< SEARCH
4. lines of the file as they are now, whole lines, copied exactly
5. the line =======
6. the lines that replace them
7. the line >>>>>>> REPLACE
8. the end of the fence

For example, an edit that makes a function of the file shop/prices.py round its result:

```python
### shop/prices.py
<<<<<<< SEARCH
    return price * (1 + tax)
=======
    return round(price * (1 + tax), 2)
>>>>>>> REPLACE
```

The white space at the beginning of a line has to be right in both parts: if the line is indented by
four blanks, write the four blanks. Take as many lines into SEARCH as are needed to find one place
in the file. Write a fence for each edit.
"""


@dataclasses.dataclass(frozen=True)
class Wording:
  """The prompts.

  Attributes:
    system: the system message.
    localize: user message with the fields {issue}, {tree} and {n}.
    repair: user message with the fields {issue} and {files}.
  """

  system: str
  localize: str
  repair: str

  def localize_messages(self, issue: str, tree: str) -> list[dict[str, str]]:
    """Returns the chat messages that request the names of the files to change."""
    return self._messages(self.localize, {"issue": issue, "tree": tree, "n": str(MOST_FILES)})

  def repair_messages(self, issue: str, files: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns the chat messages that request edits of `files`, {path: text}."""
    parts = []
    for path, text in files.items():
      # chr(10) is a line feed: an f-string of Python 3.11 cannot contain a backslash.
      parts.append(f"### {path}\n{text.removesuffix(chr(10))}")
    return self._messages(self.repair, {"issue": issue, "files": "\n\n".join(parts)})

  def _messages(self, template: str, values: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns the system message and a user message with all fields filled in."""
    # One pass over the template: a value such as the issue may itself contain "{files}".
    names = "|".join(values)
    user = re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)
    return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def wording(style: str, localize_file: str | None, repair_file: str | None) -> Wording:
  """Returns the prompts of a style, "plain" or "think".

  Args:
    style: selects the system message.
    localize_file, repair_file: text files that replace our user messages, with the same fields in
      braces.

  Raises:
    UserError: a file cannot be read or lacks a field.
  """
  localize = _template(localize_file, LOCALIZE, ("issue", "tree"), "--localize_prompt")
  repair = _template(repair_file, REPAIR, ("issue", "files"), "--repair_prompt")
  return Wording(SYSTEM[style], localize, repair)


def _template(file: str | None, default: str, fields: Sequence[str], flag: str) -> str:
  """Returns the text of a file, or the default without one; UserError if a field is missing."""
  if not file:
    return default
  try:
    text = pathlib.Path(file).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{flag}={file}: cannot be read ({error}); give a text file") from error
  for field in fields:
    if f"{{{field}}}" not in text:
      raise UserError(f"{flag}={file}: the field {{{field}}} is missing, which takes the {field}")
  return text


# ---------------------------------------------------------------------------------- packing


@dataclasses.dataclass(frozen=True)
class Packed:
  """A repair prompt.

  Attributes:
    shown: {path: text} of the files in it.
    left_out: {path: reason} of the files that are not in it.
    messages: of the prompt, [] if no file fits.
    prompt: its tokens, None if no file fits.
  """

  shown: dict[str, str]
  left_out: dict[str, str]
  messages: list[dict[str, str]]
  prompt: EncodedPrompt | None


def pack(
  issue: str,
  paths: Sequence[str],
  read: Callable[[str], bytes | None],
  words: Wording,
  encode: Callable[[list[dict[str, str]]], EncodedPrompt],
  max_tokens: int,
) -> Packed:
  """Returns the prompt with as many whole files as fit, in order.

  A file that does not fit is left out; smaller ones after it may still fit.

  Args:
    issue: its text.
    paths: of the files, the most important one first.
    read: returns the content of a path, or None.
    words: the prompts.
    encode: messages -> tokens.
    max_tokens: limit of the prompt.
  """
  shown, left_out, messages, prompt = {}, {}, [], None
  for path in paths:
    content = read(path)
    if content is None:
      left_out[path] = "not in the repository"
      continue
    decoded = repositories.decode(content)
    if decoded is None or decoded[1] != "utf-8":
      left_out[path] = "not UTF-8"  # predictions are JSON text, which cannot hold its bytes
      continue
    # The whole prompt is encoded again for each file: tokens of parts do not add up exactly.
    more = {**shown, path: decoded[0]}
    longer = words.repair_messages(issue, more)
    encoded = encode(longer)
    if len(encoded.token_ids) > max_tokens:
      left_out[path] = f"too long: the prompt would have {len(encoded.token_ids)} tokens"
      continue
    shown, messages, prompt = more, longer, encoded
  return Packed(shown, left_out, messages, prompt)


# ---------------------------------------------------------------------------------- localisation

_NUMBER = re.compile(r"\d+[.)]\s+")  # of an item in a numbered list


def named_files(text: str, names: Sequence[str]) -> tuple[list[str], int]:
  """Returns the files that a response names, at most MOST_FILES, and the number of lenient lines.

  A line counts if it is a path of the repository after bullets, numbers, back-ticks and "./" are
  removed. Agentless Mini accepts only lines that are nothing but a path, and has no limit.

  Args:
    text: the response without its monologue.
    names: the paths that exist.
  """
  known, found, lenient = set(names), [], 0
  for line in text.split("\n"):
    # "1. path", "- path" and "path," are accepted too.
    path = edits.clean_path(_NUMBER.sub("", line.strip(), count=1)).rstrip(",:")
    if path in known and path not in found and len(found) < MOST_FILES:
      found.append(path)
      lenient += path != line.rstrip("\r")
  return found, lenient
