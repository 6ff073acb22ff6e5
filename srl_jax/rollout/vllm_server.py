"""The HTTP client of one vLLM server: address, connections, parsing of answers."""

import contextlib
import http.client
import io
import ipaddress
import json
import reprlib
import socket
import threading
import time
import urllib.parse
from collections.abc import Sequence

from srl_jax.addresses import api_key, without_secret
from srl_jax.config import check_servers
from srl_jax.errors import UserError

CONNECT_SECONDS = 5.0
LARGEST_ANSWER = 1 << 28  # bytes
ANSWER_SECONDS = 60.0  # from the first byte of an answer to its last
# Statuses that every server would return for the same request. A 404 is not one of them: it may be
# a proxy's, or that of a server that is being replaced.
WRONG_REQUEST = (400, 413, 422)
LOWEST_LOGPROB = -1000.0  # of a token that was sampled; vLLM writes -9999 for minus infinity


class ServerError(Exception):
  """A server gave no answer, or none that can be used; another server may.

  Field: status, of HTTP, or None when there was no answer.
  """

  def __init__(self, message: str, status: int | None = None):
    super().__init__(message)
    self.status = status


class Server:
  """A vLLM server.

  Each call opens a connection: a call lasts seconds, a connect less than a millisecond, and a
  connection that no other call uses can be cut, which aborts its request.

  Args:
    url: "http://host:port".
    public: take an address outside loopback and private networks. The routes that take weights do
      not check the API key: any client that can connect may use them.

  Raises UserError for something that is no base URL, or a public address without `public`.
  """

  def __init__(self, url: str, *, public: bool = False):
    check_servers(url)
    try:
      parts = urllib.parse.urlsplit(url)
      self.host, self.port = parts.hostname, parts.port
    except ValueError as error:  # brackets, or the port
      raise UserError(f"rollout.servers: {url!r} is not a base URL ({error})") from error
    rest = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not self.host or rest:
      raise UserError(
        f"rollout.servers: {url!r} is not a base URL; write for example http://127.0.0.1:8101"
      )
    self.secure = parts.scheme == "https"
    self.port = self.port or (443 if self.secure else 80)
    self.url = f"{parts.scheme}://{self.host}:{self.port}"
    if not public:
      self._check_private()
    self._key = api_key("VLLM_API_KEY")
    self._lock = threading.Lock()
    self._open: dict[socket.socket, object] = {}

  def _check_private(self) -> None:
    try:
      found = socket.getaddrinfo(self.host, self.port)
    except OSError as error:
      raise UserError(f"rollout.servers: {self.url}: unknown host ({error})") from error
    for *_, socket_address in found:
      address = socket_address[0]
      without_zone = address.partition("%")[0]  # IPv6 may name the interface: fe80::1%eth0
      if not ipaddress.ip_address(without_zone).is_private:
        raise UserError(
          f"rollout.servers: {self.url} is the public address {address}, and a server's weight "
          "routes are open to all who reach it. Use a private network or a tunnel, or set "
          "rollout.public_servers=True"
        )

  def call(
    self,
    method: str,
    path: str,
    body=None,
    *,
    timeout: float,
    owner: threading.Event | None = None,
    is_json: bool = True,
  ):
    """The decoded JSON answer of one request.

    Args:
      body: sent as JSON, or None.
      timeout: seconds for the whole answer, of which ANSWER_SECONDS may be between its first byte
        and its last. The server drops the work when they have passed.
      owner: an event under which `cut` ends the call; once it is set no call of it begins.
      is_json: whether the answer is JSON; else None comes back.

    Raises:
      ServerError: no answer, or one that cannot be used.
      UserError: one of WRONG_REQUEST.
    """
    deadline = time.monotonic() + timeout
    kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
    # A connect takes milliseconds; the timeout of the answer is set after it.
    connection = kind(self.host, self.port, timeout=CONNECT_SECONDS)
    headers = {"Content-Type": "application/json"}
    if self._key:
      headers["Authorization"] = f"Bearer {self._key}"
    sock = None
    where = f"{self.url}{path.partition('?')[0]}"
    try:
      connection.connect()
      sock = connection.sock
      sock.settimeout(timeout)
      with self._lock:
        self._open[sock] = owner
      # Checked after the socket is registered: a `cut` before that line is seen here, a later one
      # closes the socket.
      if owner is not None and owner.is_set():
        raise ServerError(f"{where}: the call was ended")
      connection.response_class = _response_until(deadline)
      connection.request(method, path, None if body is None else json.dumps(body), headers)
      answer = connection.getresponse()
      data = answer.read(LARGEST_ANSWER)
    except TimeoutError as error:
      raise ServerError(f"{where}: no answer in {timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
      raise ServerError(f"{where}: {str(error) or type(error).__name__}") from error
    finally:
      with self._lock:
        self._open.pop(sock, None)
      connection.close()
    if answer.status != 200:
      said = f"{where} answered {answer.status}: {_message(data, self._key)}"
      if answer.status in WRONG_REQUEST:
        raise UserError(said)
      raise ServerError(said, answer.status)
    try:
      return json.loads(data or b"null") if is_json else None
    except (ValueError, RecursionError) as error:
      raise ServerError(f"{where} answered no JSON: {_message(data, self._key)}") from error

  def healthy(self, timeout: float = CONNECT_SECONDS, owner: threading.Event | None = None) -> bool:
    """Whether /health answers 200 in `timeout` seconds."""
    try:
      self.call("GET", "/health", timeout=timeout, owner=owner)
    except (ServerError, ValueError):
      return False
    return True

  def cut(self, owner: threading.Event | None = None) -> None:
    """Ends the calls of `owner` in other threads, or all: they raise, and the server aborts."""
    chosen = []
    with self._lock:
      for sock, owner_of_call in self._open.items():
        if owner is None or owner_of_call is owner:
          chosen.append(sock)
    for sock in chosen:
      with contextlib.suppress(OSError):  # it ended by itself meanwhile
        sock.shutdown(socket.SHUT_RDWR)


class _Until(io.RawIOBase):
  """Reads a socket up to a moment, and for ANSWER_SECONDS from the first byte on.

  The timeout of a socket restarts with every byte.
  """

  def __init__(self, sock: socket.socket, deadline: float):
    self._sock, self._deadline = sock, deadline
    self._begun = False
    self._file = sock.makefile("rb", buffering=0)

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int | None:
    left = self._deadline - time.monotonic()
    if left <= 0:
      raise TimeoutError
    self._sock.settimeout(left)
    count = self._file.readinto(buffer)
    if not self._begun:
      self._begun = True
      self._deadline = min(self._deadline, time.monotonic() + ANSWER_SECONDS)
    return count

  def close(self) -> None:
    self._file.close()
    super().close()


def _response_until(deadline: float):
  """A response_class for http.client: an answer that ends after `deadline` raises TimeoutError."""

  class Response(http.client.HTTPResponse):
    def __init__(self, sock, *args, **kwargs):
      super().__init__(sock, *args, **kwargs)
      self.fp.close()
      self.fp = io.BufferedReader(_Until(sock, deadline))

  return Response


def read_group(
  answer, n: int, max_tokens: int, stop_ids: Sequence[int], vocab_size: int = 1 << 31
) -> list[tuple]:
  """[(token_ids, logprobs, finish_reason, versions)] of the n responses in a server's answer.

  Raises ServerError for an answer that is not that: with tokens beyond the vocabulary or after a
  stop token, or log-probs that no sampled token has.
  """
  try:
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(n)):
      raise UserError(f"{len(choices)} choices, not {n} with the indices from 0 on")
    return [_read_choice(choice, max_tokens, stop_ids, vocab_size) for choice in choices]
  except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
    said = " ".join(reprlib.repr(answer).split())[:300]
    raise ServerError(f"answer not understood: {error!r} in {said}") from error


def _read_choice(choice, max_tokens: int, stop_ids: Sequence[int], vocab_size: int) -> tuple:
  # A server's answer is checked before it is trained on: one that contradicts itself is a fault.
  token_ids = tuple(choice["token_ids"])
  content = (choice["logprobs"] or {"content": []})["content"]
  logprobs = tuple(entry["logprob"] for entry in content)
  reason = choice["finish_reason"]
  versions = tuple(str(span["version"]) for span in choice["weight_versions"] or ())
  if reason == "abort":  # it is sampled again whatever is in it
    return token_ids, logprobs, reason, versions
  stopped = bool(token_ids) and token_ids[-1] in stop_ids
  if (
    not 0 < len(token_ids) <= max_tokens
    or not all(type(value) is int and 0 <= value < vocab_size for value in token_ids)
    or not set(stop_ids).isdisjoint(token_ids[:-1])
    or token_ids != tuple(entry["token_id"] for entry in content)
    or not all(map(_is_logprob, logprobs))
    or reason != ("stop" if stopped else "length")
    or not versions
  ):
    raise UserError(f"choice {choice['index']} contradicts itself")
  return token_ids, tuple(map(float, logprobs)), reason, versions


def _is_logprob(value) -> bool:
  # bool is an int, too. Rounding may bring a log-prob just above 0. NaN compares as False.
  return type(value) in (int, float) and LOWEST_LOGPROB <= value <= 1e-3


def _message(data: bytes, key: str | None) -> str:
  """The message of an answer in one short line, without the key."""
  text = data[:2000].decode(errors="replace")
  with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
    message = json.loads(data)["error"]["message"]
    text = message if isinstance(message, str) else reprlib.repr(message)
  text = text.encode(errors="replace").decode()  # half a character cannot be printed
  return " ".join(without_secret(text, key).split())[:500] or "nothing"
