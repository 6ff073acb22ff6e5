"""Separates an expert's reasoning, written in think tags, from the text around it."""

import re

from srl_jax.data.responses import (
  CLOSE,
  OPEN,
  monologues,
  outside_think_blocks,
  whole_format_failure,
)

# Spellings of the tags that are replaced by ours: <thinking>, and those of OpenThoughts, which also
# puts tags around the solution.
_OPEN = re.compile(r"<think(?:ing)?>|<\|begin_of_thought\|>", re.IGNORECASE)
_CLOSE = re.compile(r"</think(?:ing)?>|<\|end_of_thought\|>", re.IGNORECASE)
_AROUND_SOLUTION = re.compile(r"<\|(?:begin|end)_of_solution\|>")


def split_thoughts(text: str) -> tuple[str, str]:
  """Returns the reasoning of a text, without its tags, and the text without the reasoning.

  The open tag may be missing (a server omits it if the chat template wrote it), and so may the
  close tag (the text was truncated). Both parts are stripped; a text without tags is unchanged.
  """
  turn = _whole_turn(text)
  if OPEN not in turn:
    return "", text
  thoughts, outside = monologues(turn), outside_think_blocks(turn)
  # Nested blocks: `outside_think_blocks` stopped at the first close tag, so the text up to the last
  # one is reasoning too.
  if CLOSE in outside:
    rest, _, outside = outside.rpartition(CLOSE)
    thoughts.append(rest)
  return without_tags("\n".join(thoughts)), without_tags(outside)


def as_response(text: str, reasoning: str) -> str:
  """Returns an expert's text as a response to learn: reasoning in think tags, then the solution.

  Args:
    text: the solution. Think blocks in it are the reasoning if `reasoning` is empty; well-formed
      blocks then keep their places.
    reasoning: the expert's reasoning from another column, or "".
  """
  thoughts, solution = split_thoughts(text)
  turn = _whole_turn(text)
  if thoughts and not reasoning and whole_format_failure(turn) is None:
    return turn
  reasoning = without_tags(reasoning) or thoughts
  return f"{OPEN}\n{reasoning}\n{CLOSE}\n{solution}" if solution and reasoning else solution


def without_tags(text: str) -> str:
  """Returns a text without think tags of any spelling, stripped; the text between them is kept."""
  text = _CLOSE.sub("", _OPEN.sub("", text))
  # What is left of "<th<think>ink>" is a tag again. A space in its place cannot join another one.
  return _CLOSE.sub(" ", _OPEN.sub(" ", text)).strip()


def _whole_turn(text: str) -> str:
  """Returns the text with our tags, and with the open tag restored if only a close tag is there."""
  turn = _AROUND_SOLUTION.sub("", _CLOSE.sub(CLOSE, _OPEN.sub(OPEN, text)))
  return OPEN + turn if CLOSE in turn.partition(OPEN)[0] else turn
