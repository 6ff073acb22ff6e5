"""A chat with an OpenAI-compatible server over HTTP: one request, one answer, and its faults."""

import contextlib
import http.client
import itertools
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from srl_jax.errors import UserError

# Tries of a request to a server that is busy (rate limits count by the minute) or does not answer.
_TRIES_BUSY, _TRIES_SILENT = 8, 3
_LONGEST_PAUSE = 60.0  # seconds


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

  The key in OPENAI_API_KEY is sent if there is one. Raises UserError for something that is no URL.
  """

  def __init__(self, url: str, model: str, *, timeout: float):
    if "@" in url:  # not shown: it has a password in it
      raise UserError("--server: an address with a user name; give an API key in OPENAI_API_KEY")
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
    self._opener = urllib.request.build_opener(_NoRedirect)

  def chat(
    self, messages: list[dict[str, str]], *, temperature: float, max_tokens: int
  ) -> tuple[str, str]:
    """Returns the text of one answer and the finish reason ("stop", "length", ...).

    Raises:
      UserError: the server refuses the request, or does not answer in any of its tries.
    """
    body = {
      "model": self.model,
      "messages": messages,
      "temperature": temperature,
      "max_tokens": max_tokens,
    }
    for number in itertools.count(1):
      try:
        return self._answer(self._post(body))
      except urllib.error.HTTPError as error:
        fault, tries = f"HTTP {error.code}: {_said(error)}", _TRIES_BUSY
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
    key = os.environ.get("OPENAI_API_KEY")
    if key:
      headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
    with self._opener.open(request, timeout=self.timeout) as answer:
      return answer.read()

  def _answer(self, data: bytes) -> tuple[str, str]:
    try:
      choice = json.loads(data)["choices"][0]
      return choice["message"]["content"] or "", choice["finish_reason"] or ""
    except (LookupError, TypeError, ValueError) as error:
      start = " ".join(data[:200].decode(errors="replace").split())
      raise UserError(
        f"{self.url}: the answer is no chat completion: {start!r}; is it an OpenAI-compatible"
        " server?"
      ) from error


def _said(error: urllib.error.HTTPError) -> str:
  """Returns the server's message about an error as one short line."""
  try:
    text = error.read(5000).decode(errors="replace")
  except (OSError, http.client.HTTPException):
    text = ""
  with contextlib.suppress(LookupError, TypeError, ValueError):
    text = json.loads(text)["error"]["message"]
  return " ".join(str(text).split())[:300] or error.reason


def _remedy(status: int) -> str:
  return {
    401: "; set OPENAI_API_KEY",
    403: "; set OPENAI_API_KEY to a key that may use this model",
    404: "; check --server and --model",
  }.get(status, "")
