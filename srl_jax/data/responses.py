"""The format of responses: a monologue in think tags, then the action (paper, 4.2)."""

import re
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
_TAG = re.compile(r"</?think>")
# A block ends at its tag, or at the end of a text that never closes it.
_BLOCK = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


class Response(NamedTuple):
  """A well-formed answer: `monologue` inside the think tags, `action` after them, both stripped."""

  monologue: str
  action: str


def parse_response(text: str, *, think_opened: bool = False) -> Response | None:
  """Returns the parts of a one-step answer, or None if `format_failure` has a reason against it.

  Args:
    text: the response, without the prompt and the end-of-turn token.
    think_opened: the prompt ended inside a think block, so `text` begins in the monologue. A second
      open tag in `text` is then one too many ("several"): the rule is about the whole turn, however
      it was divided between template and policy.
  """
  if format_failure(text, think_opened=think_opened):
    return None
  monologue, action = _whole_turn(text, think_opened).split(CLOSE)
  return Response(monologue.lstrip().removeprefix(OPEN).strip(), action.strip())


def format_failure(
  text: str, finish_reason: str = "stop", *, think_opened: bool = False
) -> str | None:
  """Returns why a one-step answer breaks the format, or None if it keeps it.

  The format: leading white space, exactly one think block (its monologue may be empty), then an
  action that is not blank. The first reason that holds counts:
    cut_off       the answer did not end by itself, so that even a visible action may be half one
    no_open       there is no think block, or text before it
    no_close      the think block is never closed
    several       a second open or close tag
    empty_action  nothing after the think block

  Args:
    text: as for `parse_response`.
    finish_reason: the engine's; anything but "stop" means cut off.
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
  """Returns why a whole solution is malformed, or None: any number of think blocks, and some text.

  The reasons have the names of `format_failure`: no_open (a close tag without its open tag),
  no_close (a block that is not closed), several (a block inside a block), empty_action (nothing
  outside the blocks); cut_off replaces any of them where the answer did not end by itself. An
  answer that was cut off outside its blocks is well-formed.
  """
  turn = _whole_turn(text, think_opened)
  tags = _TAG.findall(turn)
  if tags == [OPEN, CLOSE] * (len(tags) // 2):
    outside = outside_think_blocks(turn)
    failure = None if outside else "empty_action"
    if _TAG.search(outside):  # the pieces around a block form another tag
      failure = "several"
  elif tags.count(OPEN) == tags.count(CLOSE):
    failure = "several"
  else:
    failure = "no_close" if tags.count(OPEN) > tags.count(CLOSE) else "no_open"
  return "cut_off" if failure and finish_reason != "stop" else failure


def outside_think_blocks(text: str, *, think_opened: bool = False) -> str:
  """Returns what a reader sees of any text: no think block, no unclosed one, stripped.

  It refuses nothing: final answers are judged without a format term.
  """
  return _BLOCK.sub("", _whole_turn(text, think_opened)).strip()


def monologues(text: str, *, think_opened: bool = False) -> list[str]:
  """Returns the stripped contents of all think blocks, an unclosed last one included."""
  blocks = _BLOCK.findall(_whole_turn(text, think_opened))
  return [block.removeprefix(OPEN).removesuffix(CLOSE).strip() for block in blocks]


def after_opened_tag(turn: str) -> str:
  """Returns what is left to write of a response whose open tag the chat template has written.

  A response without a monologue closes the block at once: otherwise all of it would be inside.

  Args:
    turn: the whole response, which begins with a think block or has none in front.
  """
  turn = turn.lstrip()
  if turn.startswith(OPEN):
    return turn.removeprefix(OPEN).lstrip()  # the template's white space follows its tag
  return f"{CLOSE}\n{turn}"


def _whole_turn(text: str, think_opened: bool) -> str:
  return OPEN + text if think_opened else text
