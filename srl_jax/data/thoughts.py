"""Thoughts inside an expert's text: what a reasoning model wrote before or between its steps."""

import re

from srl_jax.data.responses import (
  CLOSE,
  OPEN,
  monologues,
  outside_think_blocks,
  whole_format_failure,
)

# Other spellings of the tags become ours: <thinking>, and those of OpenThoughts, whose solution has
# tags too.
_OPEN = re.compile(r"<think(?:ing)?>|<\|begin_of_thought\|>", re.IGNORECASE)
_CLOSE = re.compile(r"</think(?:ing)?>|<\|end_of_thought\|>", re.IGNORECASE)
_AROUND_SOLUTION = re.compile(r"<\|(?:begin|end)_of_solution\|>")


def split_thoughts(text: str) -> tuple[str, str]:
  """Returns the thoughts of a text, without their tags, and the text without the thoughts.

  Thoughts may lack their open tag, as a server's do whose chat template has written it, or their
  close tag, if the text was cut off. Both parts are stripped; a text without tags is unchanged.
  """
  turn = _whole_turn(text)
  if OPEN not in turn:
    return "", text
  thoughts, outside = monologues(turn), outside_think_blocks(turn)
  if CLOSE in outside:  # a block inside a block
    rest, _, outside = outside.rpartition(CLOSE)
    thoughts.append(rest)
  return without_tags("\n".join(thoughts)), without_tags(outside)


def as_response(text: str, reasoning: str) -> str:
  """Returns an expert's text as a response to learn: reasoning in think tags, then the solution.

  Args:
    text: the solution. Thoughts in it are the reasoning where `reasoning` is empty; blocks that are
      well-formed then stay where they are.
    reasoning: the expert's reasoning from another place, or "".
  """
  thoughts, solution = split_thoughts(text)
  turn = _whole_turn(text)
  if thoughts and not reasoning and whole_format_failure(turn) is None:
    return turn
  reasoning = without_tags(reasoning) or thoughts
  return f"{OPEN}\n{reasoning}\n{CLOSE}\n{solution}" if solution and reasoning else solution


def without_tags(text: str) -> str:
  """Returns a text without think tags of any spelling, stripped; what is between them stays."""
  return _CLOSE.sub("", _OPEN.sub("", text)).strip()


def _whole_turn(text: str) -> str:
  """The text with our tags, and with the open tag of thoughts that have only a close tag."""
  turn = _AROUND_SOLUTION.sub("", _CLOSE.sub(CLOSE, _OPEN.sub(OPEN, text)))
  return OPEN + turn if CLOSE in turn.partition(OPEN)[0] else turn
