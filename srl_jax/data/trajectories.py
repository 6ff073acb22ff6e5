"""Runs of a software agent (SWE-smith), cut into thoughts, actions and observations (paper, 5.3).

The action is "the environment-consumable command" alone. Whether a run was written as
text or as tool calls, its actions have the same form: the one that SWE-agent's function-calling
parser reads, and that the runs written as text already have:

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
# Their values begin and end with a line break.
_LONG_VALUES = ("file_text", "new_str", "old_str")
_OBSERVATION = "OBSERVATION:\n"

_NAME = re.compile(r"[\w.-]+")  # of a function or a parameter
# At the start of a line, so that a thought may speak of functions.
_CALL_BEGIN = re.compile(r"(?:\A|(?<=\n))<function=[\w.-]+>\n")
_CALL_END = "</function>"
_PARAMETER = re.compile(
  r"<parameter=([\w.-]+)>(.*?)</parameter>\n(?=<parameter=[\w.-]+>|</function>|\Z)", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class AgentStep:
  """One turn of an agent.

  Attributes:
    thought: its text before the action; may be empty.
    action: the function call.
    observation: the answer of the environment, or None where the run ends.
  """

  thought: str
  action: str
  observation: str | None


def split_actions(messages: str | Sequence[dict[str, Any]]) -> list[AgentStep]:
  """Returns the steps of a run, in order.

  The environment answers the first submit with a request to check the work, so most runs submit
  twice. Every submit after the first is left out: given that request it is no decision.

  Args:
    messages: a list of messages or its JSON. An assistant's message holds its call as text
      (`<function=...>`) or in `tool_calls`; the message after it, of role user or tool, holds the
      observation.

  Raises:
    UserError: no list of messages, or an assistant's message without exactly one function call.
  """
  messages = read_messages(messages)
  turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
  if len(turns) > 1 and _is_remark(messages[turns[-1]]):
    turns.pop()  # a sentence that closes the run is no action
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
  """Whether an assistant's message has no function call, not even a broken one."""
  return not message.get("tool_calls") and "<function" not in text_of(message)


def _observation(after: Sequence[dict[str, Any]]) -> str | None:
  """Returns what the message after an action shows, None if there is none of the environment."""
  if not after or after[0]["role"] not in ("user", "tool"):
    return None
  return text_of(after[0]).removeprefix(_OBSERVATION).strip("\n")


def read_messages(messages: str | Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
  """Returns the messages as a list, in which every item has a role."""
  if isinstance(messages, str):
    try:
      messages = json.loads(messages)
    except (RecursionError, ValueError) as error:
      raise UserError(f"the messages are broken JSON: {error}") from error
  if not isinstance(messages, Sequence) or not messages:
    raise UserError("expected a list of messages, or its JSON")
  for i, message in enumerate(messages):
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
      raise UserError(f"message {i} is no object with a role")
  return messages


def text_of(message: dict[str, Any]) -> str:
  """Returns a message's content, plain or in parts, with the line ends of Unix.

  Terminals end lines with CR LF, and tool-call runs keep that.
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
  """Returns the thought and the action of an assistant's message."""
  calls = message.get("tool_calls")
  if calls:
    if not isinstance(calls, list):
      raise UserError(f"its tool_calls are a {type(calls).__name__}, not a list")
    if len(calls) > 1:
      raise UserError(f"{len(calls)} function calls, expected one")
    return text_of(message).strip(), _tool_action(calls[0])
  text = text_of(message)
  thought, body = _split_at_call(text)
  # Parameters must follow one another: text between them would be lost.
  at = 0
  while parameter := _PARAMETER.match(body, at):
    at = parameter.end()
  if at < len(body):
    raise UserError("expected one function call with nothing between its parameters")
  return thought.strip(), text[len(thought) :].strip()


def _split_at_call(text: str) -> tuple[str, str]:
  """Returns the text before the function call that ends it, and what is inside the call.

  The end is looked for first: a pattern of the whole call would search the rest of the text for its
  end at each line that begins one.
  """
  begin, end = _CALL_BEGIN.search(text), len(text.rstrip()) - len(_CALL_END)
  if not begin or end < begin.end() or not text.startswith(_CALL_END, end):
    raise UserError("it does not end with a function call")
  return text[: begin.start()], text[begin.end() : end]


def _tool_action(call: Any) -> str:
  """Returns a tool call in the form of the text runs."""
  try:
    name, arguments = call["function"]["name"], call["function"]["arguments"] or {}
    if isinstance(arguments, str):  # JSON, as the OpenAI API has it; others write an object
      arguments = json.loads(arguments)
    items = arguments.items()
  except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
    raise UserError(f"its tool call has no function with arguments in JSON ({error})") from error
  for given in (name, *arguments):
    if not isinstance(given, str) or not _NAME.fullmatch(given):
      raise UserError(f"{str(given)[:80]!r} is no name of a function or a parameter")
  lines = [f"<function={name}>"]
  for key, value in items:
    value = value if isinstance(value, str) else _json(value)
    line_end = "\n" if key in _LONG_VALUES else ""
    lines.append(f"<parameter={key}>{line_end}{value}{line_end}</parameter>")
  return "\n".join([*lines, "</function>"])


def _json(value: Any) -> str:
  try:
    return json.dumps(value)
  except RecursionError as error:  # the writer may give up before the reader does
    raise UserError("an argument of its tool call is nested too deeply") from error


def shorten(text: str, limit: int, tokenizer) -> str:
  """Returns the text, or `limit` tokens of it, from both ends, with a mark between them.

  Args:
    text: an observation.
    limit: tokens; those of the mark are not counted.
    tokenizer: from data.tokenizer.load_tokenizer.
  """
  if len(text.encode("utf-8", "surrogatepass")) <= limit:  # a token has one byte at least
    return text
  encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
  spans = encoded["offset_mapping"]  # (begin, end) of each token, in characters
  cut = len(spans) - limit
  if cut <= 0:
    return text
  head = limit - limit // 2  # tokens that are kept in front; the other limit - head are at the end
  begin, end = spans[head - 1][1], spans[head + cut][0] if head < limit else len(text)
  return f"{text[:begin]}\n[... {cut} tokens left out ...]\n{text[end:]}"
