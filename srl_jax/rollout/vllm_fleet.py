"""The servers of a run: which of them are live, which has room, and which weights each has.

A server is used only while it is live: it answers, and it passed the check after its last push.
One that fails is lost: its requests end at once and are sent to the other servers. It is polled,
and when it answers again (with the weights that it read from disk) it gets the newest weights.
"""

import contextlib
import dataclasses
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

from srl_jax.errors import EngineError, UserError
from srl_jax.rollout.vllm_server import Server, ServerError
from srl_jax.rollout.vllm_weights import Probe, Served, push, push_adapters

START_SECONDS = 300.0  # a server needs 40 to 150 s to start
HEALTH_EVERY = 2.0  # seconds between two polls of /health
HEALTH_SECONDS = 10.0  # timeout of a poll; a busy server answers late
MISSES = 3  # answers from /health that stay out before a server is lost
PUSHES = 2  # of the same weights to a server
CLOSE_SECONDS = 2.0  # a thread may wait longer for a connection, but begins no call then
FAULTS = 3  # useless answers in a row before a server is lost
RETRY_SECONDS = 60.0  # longest time between two attempts to win a lost server back


@dataclasses.dataclass(frozen=True)
class Limits:
  """A server's settings: lora_rank is that of adapters at most, 0 if it takes none."""

  dtype: str
  max_num_seqs: int
  max_model_len: int
  logprobs_mode: str
  lora_rank: int = 0


def read_limits(server: Server, owner: threading.Event | None = None) -> Limits:
  """A server's settings; UserError when it was started without its control routes.

  `owner` is that of Server.call. Raises ServerError for settings that are none.
  """
  try:
    found = server.call("GET", "/server_info?config_format=json", timeout=60, owner=owner)
  except ServerError as error:
    if error.status in (401, 403, 404):  # it has no such route, or wants a key
      raise UserError(f"{error}; start this server with launch/vllm_server.sh") from error
    raise
  except UserError as error:
    raise UserError(f"{error}; start this server with launch/vllm_server.sh") from error
  try:
    found = found["vllm_config"]
    model, scheduler = found["model_config"], found["scheduler_config"]
    limits = Limits(
      dtype=model["dtype"].removeprefix("torch."),
      max_num_seqs=int(scheduler["max_num_seqs"]),
      max_model_len=int(model["max_model_len"]),
      logprobs_mode=str(model["logprobs_mode"]),
      lora_rank=int((found.get("lora_config") or {}).get("max_lora_rank", 0)),
    )
    # A probe needs two tokens and one more.
    if not 0 < limits.max_num_seqs < 2**31 or not 3 <= limits.max_model_len < 2**31:
      raise ValueError(f"{limits.max_num_seqs} responses of {limits.max_model_len} tokens")
  except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
    reason = repr(error)[:200]
    raise ServerError(f"{server.url}/server_info: answer not understood ({reason})") from error
  return limits


@dataclasses.dataclass(frozen=True)
class Weights:
  """The weights for the servers.

  Fields: root and the files' folder in it; version; probe, the check of both, and the type that it
  is made in; adapters, whether the files have adapters only.
  """

  root: pathlib.Path
  folder: str
  version: int
  probe: Probe
  dtype: str
  adapters: bool = False


@dataclasses.dataclass
class Member:
  """A server and its state.

  Fields: limits, once it answered; live; in_flight, responses; faults, in a row; reason, why it is
  not live; served, what it has since the last push.
  """

  server: Server
  limits: Limits | None = None
  live: bool = False
  in_flight: int = 0
  faults: int = 0
  reason: str = "/health never answered 200"
  served: Served | None = None

  def take(self, weights: Weights, owner: threading.Event) -> None:
    """Gives the server weights and checks them; raises as the functions that it calls."""
    if weights.adapters:
      place = weights.root / weights.folder
      self.served = push_adapters(self.server, place, weights.version, self.served, owner)
    else:
      self.served = push(self.server, weights.folder, weights.version, owner)
    weights.probe.check(self.server, self.served, weights.dtype, owner)


class Fleet:
  """All servers of a run.

  Args:
    urls: base URLs.
    public: see Server.
    patience: seconds to wait for a lost server to recover when none is left.
    check: called at least every second while the start or `push` waits; it may raise to end it.
    say: prints a line.

  Raises UserError when no server is ready in START_SECONDS, or they differ in their type.
  """

  def __init__(
    self, urls: Sequence[str], *, public: bool, patience: float, check: Callable, say: Callable
  ):
    self.members = [Member(Server(url, public=public)) for url in urls]
    self.patience, self.check, self.say = patience, check, say
    self.weights: Weights | None = None
    self._changed = threading.Condition()
    self._closed = threading.Event()
    self._announced = False  # whether a line was printed that no server is left
    self._await_start()
    self._check_start()
    self._watchers = []
    for member in self.members:
      self._watchers.append(threading.Thread(target=self._watch, args=(member,), daemon=True))
      self._watchers[-1].start()

  def _await_start(self) -> None:
    """Returns when all servers are live, or after START_SECONDS."""
    deadline, announced = time.monotonic() + START_SECONDS, False
    while True:
      self._side_by_side(self._try_to_start, self._lost())
      if not self._lost() or time.monotonic() > deadline:
        return
      if not announced:
        announced = True
        urls = ", ".join(member.server.url for member in self._lost())
        self.say(f"waiting for {urls}, {START_SECONDS:.0f} s at most ...")
      self._pause(1.0)

  def _try_to_start(self, member: Member, ended: threading.Event) -> None:
    if member.server.healthy(owner=ended):
      try:
        member.limits, member.live = read_limits(member.server, ended), True
      except ServerError as error:
        member.reason = str(error)

  def _pause(self, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
      self.check()
      time.sleep(0.1)

  def _side_by_side(
    self, function: Callable[[Member, threading.Event], None], members: Sequence[Member]
  ) -> None:
    """Calls function(member, ended) for all members, in threads, and raises the first error.

    Returns when all have ended. An exception of self.check ends the wait: the calls to the servers,
    which are owned by `ended`, are cut, and no thread is waited for.
    """
    ended, results = threading.Event(), queue.SimpleQueue()

    def work(member: Member) -> None:
      try:
        function(member, ended)
        results.put(None)
      except BaseException as error:  # raised again in the caller's thread
        results.put(error)

    # Daemons: a call that hangs must not keep the process alive.
    for member in members:
      threading.Thread(target=work, args=(member,), daemon=True).start()
    errors = []
    try:
      while len(errors) < len(members):
        self.check()
        with contextlib.suppress(queue.Empty):
          errors.append(results.get(timeout=0.2))
    finally:
      ended.set()
      for member in members:
        member.server.cut(ended)
    for error in filter(None, errors):
      raise error

  def _check_start(self) -> None:
    """Raises UserError when no server is ready, or the servers differ in their type."""
    ready = self.ready()
    if not ready:
      tried = ", ".join(f"{member.server.url} ({member.reason})" for member in self.members)
      raise UserError(
        f"rollout.servers: none is ready within {START_SECONDS:.0f} s: {tried}; start one with "
        "launch/vllm_server.sh MODEL"
      )
    types = {member.limits.dtype for member in ready}
    if len(types) > 1 or not types <= {"float32", "bfloat16"}:
      raise UserError(
        f"rollout.servers: the servers compute in {', '.join(sorted(types))}; start all of them "
        "with --dtype=float32 or all with --dtype=bfloat16"
      )

  @property
  def dtype(self) -> str:
    """The type that the servers compute in."""
    return next(member.limits.dtype for member in self.members if member.limits)

  @property
  def max_model_len(self) -> int:
    """Tokens of prompt and response that every server takes."""
    return min(member.limits.max_model_len for member in self.members if member.limits)

  @property
  def lora_rank(self) -> int:
    """The rank of adapters that every server takes, 0 if one takes none."""
    return min(member.limits.lora_rank for member in self.members if member.limits)

  def ready(self) -> list[Member]:
    """The live members."""
    return [member for member in self.members if member.live]

  def _lost(self) -> list[Member]:
    return [member for member in self.members if not member.live]

  def slots(self, n: int) -> int:
    """Requests of n responses that all servers together take at one time."""
    slots = 0
    for member in self.members:
      if member.limits:
        slots += max(1, member.limits.max_num_seqs // n)
    return slots

  def lease(self, n: int, cancelled: threading.Event) -> Member | None:
    """The live server with the most room for n responses; waits for room. None once cancelled.

    Raises EngineError when no server is live for `patience` seconds.
    """
    with self._changed:
      while not cancelled.is_set():
        with_room = [member for member in self.ready() if _has_room(member, n)]
        if with_room:
          member = min(with_room, key=lambda one: one.in_flight / one.limits.max_num_seqs)
          member.in_flight += n
          return member
        self._await_live(cancelled)
        self._changed.wait(0.2)  # with a timeout, because `cancelled` does not notify it
    return None

  def release(self, member: Member, n: int) -> None:
    """Gives a lease back."""
    with self._changed:
      member.in_flight -= n
      self._changed.notify_all()

  def _await_live(self, cancelled: threading.Event, check: Callable = lambda: None) -> None:
    """Returns when a server is live, or once cancelled; the caller has locked self._changed."""
    begun = time.monotonic()
    while not self.ready() and not cancelled.is_set():
      reasons = "; ".join(member.reason for member in self.members)
      if time.monotonic() - begun > self.patience:
        raise EngineError(f"no vLLM server is left, {self.patience:g} s long: {reasons}")
      if not self._announced:  # one line, however many threads wait
        self._announced = True
        self.say(f"no vLLM server is left ({reasons}); waiting {self.patience:g} s for one ...")
      self._changed.wait(0.5)
      check()

  def good(self, member: Member) -> None:
    """The server gave a useful answer."""
    member.faults = 0

  def fault(
    self, member: Member, error: Exception, owner: threading.Event, *, fatal: bool = False
  ) -> None:
    """The server gave no useful answer: it is lost at once if it is down or the error is fatal,
    else after FAULTS errors in a row. `owner` is that of Server.call.
    """
    if not member.live:
      return
    member.faults += 1
    # A single bad answer of a healthy server may be one request's fault.
    lost = fatal or member.faults >= FAULTS or not member.server.healthy(HEALTH_SECONDS, owner)
    if lost and not owner.is_set():
      self._lose(member, str(error))

  def _lose(self, member: Member, reason: str) -> None:
    with self._changed:
      if not member.live or self._closed.is_set():
        return
      member.live, member.reason = False, reason
      self._changed.notify_all()
    # Ends its requests in flight; their threads try again on another server.
    member.server.cut()
    rest = len(self.ready())
    self.say(f"vLLM server {member.server.url} is lost ({reason}); {rest} left")

  def push(self, weights: Weights) -> None:
    """Gives all live servers new weights and checks them; returns when at least one has them.

    Raises EngineError when the last server refuses the weights, or one fails the check.
    """
    with self._changed:
      self.weights = weights  # also for a server that recovers during the push (_win_back)
      members = self.ready()
    self._side_by_side(lambda member, ended: self._push(member, weights, ended), members)
    with self._changed:
      self._await_live(self._closed, self.check)

  def _push(self, member: Member, weights: Weights, ended: threading.Event) -> None:
    """Gives one server the weights, in a second try after a bad answer.

    If that fails too, the server is lost; raises EngineError if it is healthy and the last one.
    """
    server, fault = member.server, None
    for _ in range(PUSHES):
      try:
        member.take(weights, ended)
        return
      except (ServerError, UserError) as error:  # UserError: a status of WRONG_REQUEST
        fault = error
        if ended.is_set() or isinstance(error.__cause__, TimeoutError):
          break
    # The push paused the server: it must not stay so when this run ends.
    with contextlib.suppress(ServerError, UserError):
      server.call("POST", "/resume", timeout=1.0 if ended.is_set() else HEALTH_SECONDS)
    if ended.is_set() or not member.live:
      return
    if len(self.ready()) > 1 or not server.healthy(HEALTH_SECONDS, ended):
      self._lose(member, str(fault))
      return
    raise EngineError(f"the weights of step {weights.version} were refused: {fault}") from fault

  def _watch(self, member: Member) -> None:
    """Loses a server that stops answering, wins back one that answers again."""
    misses, pause = 0, HEALTH_EVERY
    while not self._closed.wait(HEALTH_EVERY if member.live else pause):
      healthy = member.server.healthy(HEALTH_SECONDS, self._closed)
      misses = 0 if healthy else misses + 1
      if member.live:
        pause = HEALTH_EVERY
        if misses >= MISSES:
          self._lose(member, f"{member.server.url}/health does not answer")
      elif healthy:
        self._win_back(member)
        # One that answers but cannot be used is tried again at doubling intervals.
        pause = min(2 * pause, RETRY_SECONDS)

  def _win_back(self, member: Member) -> None:
    try:
      # It may have been restarted with other settings.
      limits = read_limits(member.server, self._closed)
      if limits.dtype != self.dtype:
        raise ServerError(f"{member.server.url} was restarted and computes in {limits.dtype}")
      weights = self.weights
      if weights:
        member.take(weights, self._closed)
    except (ServerError, EngineError, ValueError) as error:
      if str(error) != member.reason:
        self.say(f"vLLM server {member.server.url} answers but cannot be used: {error}")
      member.reason = str(error)
      return
    with self._changed:
      if weights is not self.weights:  # pushed meanwhile: the next round gives the newest
        return
      member.limits, member.live, member.faults = limits, True, 0
      self._announced = False
      self._changed.notify_all()
    step = f" with the weights of step {weights.version}" if weights else ""
    self.say(f"vLLM server {member.server.url} is back{step}")

  def close(self) -> None:
    """Ends the watching threads and all calls; the servers keep running."""
    self._closed.set()
    for member in self.members:
      member.server.cut()
    deadline = time.monotonic() + CLOSE_SECONDS
    for thread in self._watchers:
      thread.join(max(0.0, deadline - time.monotonic()))


def _has_room(member: Member, n: int) -> bool:
  """Whether n responses fit; an idle server takes any group, more than it runs at a time too."""
  return member.in_flight + n <= member.limits.max_num_seqs or not member.in_flight
