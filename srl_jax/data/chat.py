"""A client for chat completions of an OpenAI-compatible server: one request, one answer."""

import contextlib
import http.client
import itertools
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from srl_jax import addresses
from srl_jax.errors import UserError

# Attempts per request, if the server is busy (rate limits are per minute) or does not respond.
_TRIES_BUSY, _TRIES_SILENT = 8, 3
_LONGEST_PAUSE = 60.0  # seconds between two attempts
_LARGEST_ANSWER = 1 << 24  # bytes; an answer of a million tokens is smaller


class BadAnswer(Exception):
  """A server's answer that cannot be used; the next one may be valid.

  Attributes:
    foreign: whether the answer is not a chat completion at all.
  """

  def __init__(self, message: str, *, foreign: bool = False):
    super().__init__(message)
    self.foreign = foreign


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  """Turns a redirect into an HTTP error, because it could send the API key to another host."""

  def redirect_request(self, *args):
    return None


class ChatServer:
  """The chat completions of one server and model.

  The key in the environment variable OPENAI_API_KEY is sent if it is set.

  Args:
    url: "http://host:port", with or without "/v1" or another path.
    model: its name on the server.
    timeout: seconds to wait for an answer.

  Raises:
    UserError: `url` is invalid or contains a secret, or the key cannot be sent in a header.
  """

  def __init__(self, url: str, model: str, *, timeout: float):
    addresses.check_no_secret(url, place="--server", remedy="give an API key in OPENAI_API_KEY")
    try:
      parts = urllib.parse.urlsplit(url)
      known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # unbalanced brackets, or a port that is not a number
      known = False
    if not known:
      raise UserError(f"--server={url!r} is not a URL: write for example http://localhost:8000")
    base = url.rstrip("/")
    self.url = f"{base if parts.path.strip('/') else base + '/v1'}/chat/completions"
    self.model, self.timeout = model, timeout
    self._key = addresses.api_key("OPENAI_API_KEY")
    self._opener = urllib.request.build_opener(_NoRedirect)

  def chat(
    self, messages: list[dict[str, str]], *, temperature: float, max_tokens: int
  ) -> tuple[str, str]:
    """Returns the text of one answer and the finish reason ("stop", "length", ...).

    Args:
      messages: {"role": ..., "content": ...} each.
      temperature: of sampling.
      max_tokens: at most so many tokens are generated.

    Raises:
      UserError: the server rejects the request, or every attempt fails.
      BadAnswer: the answer is not a chat completion with text as its content.
    """
    body = {
      "model": self.model,
      "messages": messages,
      "temperature": temperature,
      "max_tokens": max_tokens,
    }
    for number in itertools.count(1):
      try:
        return _read_answer(self._post(body), self._key)
      except urllib.error.HTTPError as error:
        fault, tries = f"HTTP {error.code}: {self._said(error)}", _TRIES_BUSY
        # Timeouts (408), rate limits (429) and server errors are temporary; the rest is not.
        if error.code not in (408, 429) and error.code < 500:
          raise UserError(f"{self.url}: {fault}{_remedy(error.code)}") from error
      except (OSError, http.client.HTTPException) as error:
        fault, tries = str(getattr(error, "reason", error)) or type(error).__name__, _TRIES_SILENT
      if number == tries:
        raise UserError(
          f"{self.url}: no answer in {tries} tries ({fault}): check the server and run the same"
          " command again"
        )
      time.sleep(min(_LONGEST_PAUSE, 2.0 ** (number - 1)))  # exponential backoff: 1, 2, 4, ... s

  def _post(self, body: dict[str, Any]) -> bytes:
    headers = {"Content-Type": "application/json"}
    if self._key:
      headers["Authorization"] = f"Bearer {self._key}"
    request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
    with self._opener.open(request, timeout=self.timeout) as answer:
      data = _read(answer, _LARGEST_ANSWER + 1, self.timeout)  # one more, to detect a larger one
    if len(data) > _LARGEST_ANSWER:
      raise BadAnswer(f"an answer of more than {_LARGEST_ANSWER >> 20} MiB")
    return data

  def _said(self, error: urllib.error.HTTPError) -> str:
    """Returns the server's error message as one short line with the key removed."""
    try:
      text = _read(error, 5000, self.timeout).decode(errors="replace")
    except (OSError, http.client.HTTPException, BadAnswer):
      text = ""
    with contextlib.suppress(LookupError, TypeError, ValueError, RecursionError):
      text = json.loads(text)["error"]["message"]
    text = addresses.without_secret(str(text), self._key)
    return " ".join(text.split())[:300] or error.reason


def _read(answer: Any, limit: int, seconds: float) -> bytes:
  """Returns the body, at most its first `limit` bytes; BadAnswer if that takes over `seconds`.

  The socket's timeout restarts with every byte received, so it does not bound the whole transfer.
  """
  deadline, parts, size = time.monotonic() + seconds, [], 0
  while size < limit:
    part = answer.read1(min(1 << 16, limit - size))
    if not part:
      if getattr(answer, "length", None):  # bytes announced by Content-Length but not received
        raise http.client.IncompleteRead(b"", answer.length)
      break
    parts.append(part)
    size += len(part)
    if time.monotonic() > deadline:
      raise BadAnswer(f"the answer did not end in {seconds:g} s")
  return b"".join(parts)


def _read_answer(data: bytes, key: str | None) -> tuple[str, str]:
  """Returns text and finish reason of a chat completion; raises BadAnswer for anything else."""
  try:
    choice = json.loads(data)["choices"][0]
    text, reason = choice["message"]["content"], choice["finish_reason"]
  except (LookupError, TypeError, ValueError) as error:
    start = addresses.without_secret(data[:5000].decode(errors="replace"), key)
    start = " ".join(start.split())[:200]
    raise BadAnswer(f"the answer is not a chat completion: {start!r}", foreign=True) from error
  except RecursionError as error:
    raise BadAnswer("the answer is JSON that is nested too deeply") from error
  if text is None:  # a completion without content, such as a refusal
    text = ""
  if not isinstance(text, str) or not isinstance(reason, str | None):
    raise BadAnswer("the content or the finish_reason of the answer is not a string")
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise BadAnswer(f"the answer contains a lone surrogate at {error.start}") from error
  return text, reason or ""


def _remedy(status: int) -> str:
  """Returns the remedy for an HTTP status as the end of an error message, or ""."""
  return {
    401: "; set OPENAI_API_KEY",
    403: "; set OPENAI_API_KEY to a key that may use this model",
    404: "; check --server and --model",
  }.get(status, "")
