"""A chat with an OpenAI-compatible server over HTTP: one request, one answer, and its faults."""

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

# Tries of a request to a server that is busy (rate limits count by the minute) or does not answer.
_TRIES_BUSY, _TRIES_SILENT = 8, 3
_LONGEST_PAUSE = 60.0  # seconds
_LARGEST_ANSWER = 1 << 24  # bytes; a million tokens have fewer


class BadAnswer(Exception):
  """A server's answer that cannot be used; another one may be fine.

  Field: foreign, whether it does not look like a chat completion at all.
  """

  def __init__(self, message: str, *, foreign: bool = False):
    super().__init__(message)
    self.foreign = foreign


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  """A redirect could carry the API key to another host, so it is an error like any other status."""

  def redirect_request(self, *args):
    return None


class ChatServer:
  """A server's chat completions.

  Args:
    url: "http://host:port", with or without "/v1" or another path.
    model: its name there.
    timeout: seconds to wait for an answer.

  The key in OPENAI_API_KEY is sent if there is one. Raises UserError for something that is no URL,
  and for a key that no header can hold.
  """

  def __init__(self, url: str, model: str, *, timeout: float):
    addresses.check_no_secret(url, place="--server", remedy="give an API key in OPENAI_API_KEY")
    try:
      parts = urllib.parse.urlsplit(url)
      known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets, or the port
      known = False
    if not known:
      raise UserError(f"--server={url!r} is no URL: write for example http://localhost:8000")
    base = url.rstrip("/")
    self.url = f"{base if parts.path.strip('/') else base + '/v1'}/chat/completions"
    self.model, self.timeout = model, timeout
    self._key = addresses.api_key("OPENAI_API_KEY")
    self._opener = urllib.request.build_opener(_NoRedirect)

  def chat(
    self, messages: list[dict[str, str]], *, temperature: float, max_tokens: int
  ) -> tuple[str, str]:
    """Returns the text of one answer and the finish reason ("stop", "length", ...).

    Raises:
      UserError: the server refuses the request, or does not answer in any of its tries.
      BadAnswer: it answers something else than a chat completion whose content is a text.
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
        if error.code not in (408, 429) and error.code < 500:
          raise UserError(f"{self.url}: {fault}{_remedy(error.code)}") from error
      except (OSError, http.client.HTTPException) as error:
        fault, tries = str(getattr(error, "reason", error)) or type(error).__name__, _TRIES_SILENT
      if number == tries:
        raise UserError(
          f"{self.url}: no answer in {tries} tries ({fault}); see to the server and run the same"
          " command again"
        )
      time.sleep(min(_LONGEST_PAUSE, 2.0 ** (number - 1)))

  def _post(self, body: dict[str, Any]) -> bytes:
    headers = {"Content-Type": "application/json"}
    if self._key:
      headers["Authorization"] = f"Bearer {self._key}"
    request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
    with self._opener.open(request, timeout=self.timeout) as answer:
      data = _read(answer, _LARGEST_ANSWER + 1, self.timeout)
    if len(data) > _LARGEST_ANSWER:
      raise BadAnswer(f"an answer of more than {_LARGEST_ANSWER >> 20} MiB")
    return data

  def _said(self, error: urllib.error.HTTPError) -> str:
    """Returns the server's message about an error as one short line without the key."""
    try:
      text = _read(error, 5000, self.timeout).decode(errors="replace")
    except (OSError, http.client.HTTPException, BadAnswer):
      text = ""
    with contextlib.suppress(LookupError, TypeError, ValueError, RecursionError):
      text = json.loads(text)["error"]["message"]
    text = addresses.without_secret(str(text), self._key)
    return " ".join(text.split())[:300] or error.reason


def _read(answer: Any, limit: int, seconds: float) -> bytes:
  """Returns the body, its first `limit` bytes at most; BadAnswer if that takes so many seconds.

  The socket's own timeout begins again with every byte, and a body may have no end.
  """
  deadline, parts, size = time.monotonic() + seconds, [], 0
  while size < limit:
    part = answer.read1(min(1 << 16, limit - size))
    if not part:
      if getattr(answer, "length", None):  # bytes that are still to come
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
    raise BadAnswer(f"the answer is no chat completion: {start!r}", foreign=True) from error
  except RecursionError as error:
    raise BadAnswer("the answer is JSON that is nested too deeply") from error
  if text is None:  # nothing was said
    text = ""
  if not isinstance(text, str) or not isinstance(reason, str | None):
    raise BadAnswer("the content or the finish_reason of the answer is no text")
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise BadAnswer(f"the answer has half a character at {error.start}") from error
  return text, reason or ""


def _remedy(status: int) -> str:
  return {
    401: "; set OPENAI_API_KEY",
    403: "; set OPENAI_API_KEY to a key that may use this model",
    404: "; check --server and --model",
  }.get(status, "")
