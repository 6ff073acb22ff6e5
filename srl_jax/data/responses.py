"""The response format: a monologue in think tags, then the action (paper, 4.2)."""

import re
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
_TAG = re.compile(r"</?think>")
# A think block ends at its close tag, or at the end of a text that never closes it.
_BLOCK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


class Response(NamedTuple):
  """A well-formed response: `monologue` in the think tags, `action` after them, both stripped."""

  monologue: str
  action: str


def parse_response(text: str, *, think_opened: bool = False) -> Response | None:
  """Returns the parts of a one-step response, or None if `format_failure` finds a fault in it.

  Args:
    text: the response, without the prompt and the end-of-turn token.
    think_opened: whether the prompt ended inside a think block, so that `text` begins in the
      monologue. The format applies to the whole turn, template and response together: an open tag
      in `text` is then the second one ("several").
  """
  if format_failure(text, think_opened=think_opened):
    return None
  monologue, action = _whole_turn(text, think_opened).split(CLOSE)
  return Response(monologue.lstrip().removeprefix(OPEN).strip(), action.strip())


def format_failure(
  text: str, finish_reason: str = "stop", *, think_opened: bool = False
) -> str | None:
  """Returns why a one-step response violates the format, or None if it is well-formed.

  The format: optional white space, exactly one think block (its monologue may be empty), then an
  action that is not blank. The first reason that applies is returned:
    cut_off       the response was truncated, so its action may be incomplete
    no_open       there is no think block, or text before it
    no_close      the think block is never closed
    several       a second open or close tag
    empty_action  nothing after the think block

  Args:
    text: as for `parse_response`.
    finish_reason: the engine's; anything but "stop" counts as truncated.
    think_opened: as for `parse_response`.
  """
  if finish_reason != "stop":
    return "cut_off"
  turn = _whole_turn(text, think_opened)
  if not turn.lstrip().startswith(OPEN):
    return "no_open"
  if CLOSE not in turn:
    return "no_close"
  if turn.count(OPEN) > 1 or turn.count(CLOSE) > 1:
    return "several"
  if not turn.partition(CLOSE)[2].strip():
    return "empty_action"
  return None


def whole_format_failure(
  text: str, finish_reason: str = "stop", *, think_opened: bool = False
) -> str | None:
  """Returns why a whole solution is malformed, or None.

  The format: any number of think blocks, none inside another, and some text outside them. The
  reasons have the names of `format_failure`: no_open (a close tag without its open tag), no_close
  (a block that is not closed), several (nested blocks), empty_action (nothing outside the blocks).
  A truncated response that has any of these faults returns cut_off instead; one that was truncated
  outside its blocks is well-formed.
  """
  turn = _whole_turn(text, think_opened)
  tags = _TAG.findall(turn)
  if tags == [OPEN, CLOSE] * (len(tags) // 2):
    outside = outside_think_blocks(turn)
    failure = None if outside else "empty_action"
    # Removing a block joined the text around it, and the result is itself a tag: "<thi<think>...".
    if _TAG.search(outside):
      failure = "several"
  elif tags.count(OPEN) == tags.count(CLOSE):
    failure = "several"
  else:
    failure = "no_close" if tags.count(OPEN) > tags.count(CLOSE) else "no_open"
  return "cut_off" if failure and finish_reason != "stop" else failure


def outside_think_blocks(text: str, *, think_opened: bool = False) -> str:
  """Returns the visible text of a response: without think blocks, closed or not, stripped.

  Malformed responses are accepted, because final answers are graded without a format requirement.
  """
  return _BLOCK.sub("", _whole_turn(text, think_opened)).strip()


def monologues(text: str, *, think_opened: bool = False) -> list[str]:
  """Returns the stripped contents of all think blocks, an unclosed last one included."""
  blocks = _BLOCK.findall(_whole_turn(text, think_opened))
  return [block.removeprefix(OPEN).removesuffix(CLOSE).strip() for block in blocks]


def after_opened_tag(turn: str) -> str:
  """Returns the part of a response that remains to be written after the template's open tag.

  A response without a monologue closes the block first, as all of it would be inside otherwise.

  Args:
    turn: the whole response, with or without a think block at its start.
  """
  turn = turn.lstrip()
  if turn.startswith(OPEN):
    return turn.removeprefix(OPEN).lstrip()  # the template already wrote white space after its tag
  return f"{CLOSE}\n{turn}"


def _whole_turn(text: str, think_opened: bool) -> str:
  """Returns the assistant's turn, with the open tag that the chat template wrote."""
  return OPEN + text if think_opened else text
