"""One vLLM server over HTTP: its address, its connections, what its answers mean."""

import contextlib
import http.client
import ipaddress
import json
import math
import socket
import threading
import urllib.parse
from collections.abc import Sequence

from srl_jax.addresses import api_key, without_secret
from srl_jax.config import check_servers
from srl_jax.errors import UserError

CONNECT_SECONDS = 5.0
LARGEST_ANSWER = 1 << 28  # bytes


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

  def call(self, method: str, path: str, body=None, *, timeout: float, owner=None):
    """The decoded JSON answer of one request.

    Args:
      body: sent as JSON, or None.
      timeout: seconds without a byte of the answer. The server drops the work when it passes.
      owner: a name under which `cut` ends the call.

    Raises:
      ServerError: no answer, status 5xx, 408 or 429, or an answer that is not JSON.
      UserError: any other status; the request is wrong, and every server would refuse it.
    """
    kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
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
      if 400 <= answer.status < 500 and answer.status not in (408, 429):
        raise UserError(said)
      raise ServerError(said, answer.status)
    try:
      return json.loads(data or b"null")
    except ValueError as error:
      raise ServerError(f"{where} answered no JSON: {_message(data, self._key)}") from error

  def healthy(self, timeout: float = CONNECT_SECONDS) -> bool:
    """Whether /health answers 200 in `timeout` seconds."""
    try:
      self.call("GET", "/health", timeout=timeout)
    except (ServerError, ValueError):
      return False
    return True

  def cut(self, owner=None) -> None:
    """Ends the calls of `owner` in other threads, or all: they raise, and the server aborts."""
    chosen = []
    with self._lock:
      for sock, owner_of_call in self._open.items():
        if owner is None or owner_of_call is owner:
          chosen.append(sock)
    for sock in chosen:
      with contextlib.suppress(OSError):  # it ended by itself meanwhile
        sock.shutdown(socket.SHUT_RDWR)


def read_group(answer, n: int, max_tokens: int, stop_ids: Sequence[int]) -> list[tuple]:
  """[(token_ids, logprobs, finish_reason, versions)] of the n responses in a server's answer.

  Raises ServerError for an answer that is not that.
  """
  try:
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    group = [_read_choice(choice, max_tokens, stop_ids) for choice in choices]
    if len(group) != n:
      raise UserError(f"{len(group)} choices, not {n}")
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ServerError(f"answer not understood: {error!r} in {str(answer)[:300]}") from error
  return group


def _read_choice(choice, max_tokens: int, stop_ids: Sequence[int]) -> tuple:
  token_ids = tuple(choice["token_ids"])
  content = (choice["logprobs"] or {"content": []})["content"]
  logprobs = tuple(float(entry["logprob"]) for entry in content)
  reason = choice["finish_reason"]
  versions = tuple(str(span["version"]) for span in choice["weight_versions"] or ())
  if reason == "abort":  # it is sampled again whatever is in it
    return token_ids, logprobs, reason, versions
  stopped = bool(token_ids) and token_ids[-1] in stop_ids
  if (
    not 0 < len(token_ids) <= max_tokens
    or not all(map(_is_token_id, token_ids))
    or token_ids != tuple(entry["token_id"] for entry in content)
    or not all(map(_is_logprob, logprobs))
    or reason != ("stop" if stopped else "length")
    or not versions
  ):
    raise UserError(f"choice {choice['index']} contradicts itself")
  return token_ids, logprobs, reason, versions


def _is_token_id(value) -> bool:
  return type(value) is int and value >= 0  # bool is an int, too


def _is_logprob(value: float) -> bool:
  return math.isfinite(value) and value <= 1e-3  # rounding may bring it just above 0


def _message(data: bytes, key: str | None) -> str:
  """The message of an answer in one short line, without the key."""
  text = data[:2000].decode(errors="replace")
  with contextlib.suppress(ValueError, KeyError, TypeError):
    text = json.loads(data)["error"]["message"]
  return " ".join(without_secret(str(text), key).split())[:500] or "nothing"
