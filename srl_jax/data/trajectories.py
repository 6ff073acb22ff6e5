"""Splits runs of a software agent (SWE-smith) into thoughts, actions and observations (paper, 5.3).

The action is "the environment-consumable command" alone. Some runs are written as text, others as
tool calls; actions of both get the same form, the one that SWE-agent's function-calling parser
reads:

    <function=str_replace_editor>
    <parameter=command>view</parameter>
    <parameter=view_range>[1, 20]</parameter>
    </function>
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from srl_jax.errors import UserError

SUBMIT = "<function=submit>\n</function>"
# SWE-agent writes the values of these parameters between line breaks.
_LONG_VALUES = ("file_text", "new_str", "old_str")
_OBSERVATION = "OBSERVATION:\n"

_NAME = re.compile(r"[\w.-]+")  # of a function or a parameter
# Only at the start of a line, because a thought may mention a function in its text.
_CALL_BEGIN = re.compile(r"(?:\A|(?<=\n))<function=[\w.-]+>\n")
_CALL_END = "</function>"
_PARAMETER = re.compile(
  r"<parameter=([\w.-]+)>(.*?)</parameter>\n(?=<parameter=[\w.-]+>|</function>|\Z)", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class AgentStep:
  """One turn of an agent.

  Attributes:
    thought: the text before the action; may be empty.
    action: the function call.
    observation: the environment's reply, or None if the run ends with this action.
  """

  thought: str
  action: str
  observation: str | None


def split_actions(messages: str | Sequence[dict[str, Any]]) -> list[AgentStep]:
  """Returns the steps of a run, in order.

  The environment answers the first submit with a request to review the work, so most runs submit
  twice. Later submits are dropped: they are an answer to that request and involve no decision. A
  last assistant's message without a function call, a closing remark, is ignored.

  Args:
    messages: a list of messages or its JSON. An assistant's message has its call in its text
      (`<function=...>`) or in `tool_calls`; the next message, of role user or tool, is the
      observation.

  Raises:
    UserError: `messages` is not a list of messages, or another assistant's message does not have
      exactly one function call.
  """
  messages = read_messages(messages)
  turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
  if len(turns) > 1 and _is_remark(messages[turns[-1]]):
    turns.pop()  # a closing remark without an action
  steps, submitted = [], False
  for i in turns:
    message = messages[i]
    try:
      thought, action = _take_apart(message)
      observation = _observation(messages[i + 1 : i + 2])
    except ValueError as error:
      raise UserError(f"message {i}: {error}") from error
    if action != SUBMIT or not submitted:
      steps.append(AgentStep(thought, action, observation))
    submitted |= action == SUBMIT
  return steps


def _is_remark(message: dict[str, Any]) -> bool:
  """Returns whether an assistant's message has no function call, not even a broken one."""
  try:
    return not message.get("tool_calls") and "<function" not in text_of(message)
  except UserError:  # no text at all; _take_apart raises it again, with the message's number
    return False


def _observation(after: Sequence[dict[str, Any]]) -> str | None:
  """Returns the observation in the message after an action; None if the run ended there."""
  if not after or after[0]["role"] not in ("user", "tool"):
    return None
  return text_of(after[0]).removeprefix(_OBSERVATION).strip("\n")


def read_messages(messages: str | Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
  """Returns the messages as a list; raises UserError unless every item is an object with a role."""
  if isinstance(messages, str):
    try:
      messages = json.loads(messages)
    except (RecursionError, ValueError) as error:
      raise UserError(f"the messages are broken JSON: {error}") from error
  if not isinstance(messages, Sequence) or not messages:
    raise UserError("expected a list of messages, or its JSON")
  for i, message in enumerate(messages):
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
      raise UserError(f"message {i} is not an object with a role")
  return messages


def text_of(message: dict[str, Any]) -> str:
  """Returns a message's content, a string or a list of parts, with LF line ends.

  Observations of tool-call runs have the CR LF line ends of the agent's terminal.
  """
  content = message.get("content") or ""
  parts = content if isinstance(content, list) else [{"text": content}]
  texts = []
  for part in parts:
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
      raise UserError("its content is neither a text nor a list of texts")
    texts.append(text)
  return "".join(texts).replace("\r\n", "\n")


def _take_apart(message: dict[str, Any]) -> tuple[str, str]:
  """Returns the thought and the action in an assistant's message."""
  calls = message.get("tool_calls")
  if calls:
    if not isinstance(calls, list):
      raise UserError(f"its tool_calls are a {type(calls).__name__}, expected a list")
    if len(calls) > 1:
      raise UserError(f"{len(calls)} function calls, expected one")
    return text_of(message).strip(), _tool_action(calls[0])
  text = text_of(message)
  thought, body = _split_at_call(text)
  # The parameters must be adjacent: the action would otherwise contain text that is not part of the
  # call. `at` is the end of the parameters that matched so far.
  at = 0
  while parameter := _PARAMETER.match(body, at):
    at = parameter.end()
  if at < len(body):
    raise UserError("expected one function call with nothing between its parameters")
  return thought.strip(), text[len(thought) :].strip()


def _split_at_call(text: str) -> tuple[str, str]:
  """Returns the text before the function call that ends it, and the inside of the call.

  The end of the call is located first. One pattern for the whole call would search for its end from
  every line that begins a call, which takes quadratic time.
  """
  begin, end = _CALL_BEGIN.search(text), len(text.rstrip()) - len(_CALL_END)
  if not begin or end < begin.end() or not text.startswith(_CALL_END, end):
    raise UserError("it does not end with a function call")
  return text[: begin.start()], text[begin.end() : end]


def _tool_action(call: Any) -> str:
  """Returns a tool call in the form of the runs that are written as text."""
  try:
    name, arguments = call["function"]["name"], call["function"]["arguments"] or {}
    if isinstance(arguments, str):  # JSON text, as in the OpenAI API; other sources have an object
      arguments = json.loads(arguments)
    items = arguments.items()
  except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
    raise UserError(f"its tool call has no function with JSON arguments ({error})") from error
  for given in (name, *arguments):
    if not isinstance(given, str) or not _NAME.fullmatch(given):
      raise UserError(f"{str(given)[:80]!r} is not a valid name of a function or a parameter")
  lines = [f"<function={name}>"]
  for key, value in items:
    value = value if isinstance(value, str) else _json(value)  # a number, a list such as view_range
    line_end = "\n" if key in _LONG_VALUES else ""
    lines.append(f"<parameter={key}>{line_end}{value}{line_end}</parameter>")
  return "\n".join([*lines, "</function>"])


def _json(value: Any) -> str:
  """Returns the value as JSON; raises UserError if it is nested too deeply."""
  try:
    return json.dumps(value)
  except RecursionError as error:  # the encoder's limit is lower than the parser's
    raise UserError("an argument of its tool call is nested too deeply") from error


def shorten(text: str, limit: int, tokenizer) -> str:
  """Returns a text shortened to `limit` tokens from its two ends, with a mark in the middle.

  Args:
    text: an observation.
    limit: tokens to keep; those of the mark are not counted.
    tokenizer: from data.tokenizer.load_tokenizer.
  """
  # Every token has at least one byte, so a text of `limit` bytes need not be tokenized.
  if len(text.encode("utf-8", "surrogatepass")) <= limit:
    return text
  encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
  spans = encoded["offset_mapping"]  # (begin, end) of each token, in characters
  cut = len(spans) - limit
  if cut <= 0:
    return text
  # The first `head` tokens are kept and the last limit - head. The slices use character offsets of
  # the original text, because decoding tokens need not give the same text.
  head = limit - limit // 2
  begin, end = spans[head - 1][1], spans[head + cut][0] if head < limit else len(text)
  return f"{text[:begin]}\n[... {cut} tokens left out ...]\n{text[end:]}"
