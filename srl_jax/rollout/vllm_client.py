"""The engine that samples from vLLM servers: token ids out, token ids and their log-probs back.

A prompt with its n responses is one request. As many requests are in flight as the servers take,
and groups are yielded as they end. A group that is incomplete, or of weights that are not allowed,
is counted and sampled again.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import jax

from srl_jax import hosts
from srl_jax.data.tokenizer import decode
from srl_jax.errors import EngineError, Stopped, UserError
from srl_jax.policy.lora import merge
from srl_jax.policy.model import Qwen2
from srl_jax.rollout.engine import Prompt, Rollout, SamplingParams
from srl_jax.rollout.vllm_fleet import CLOSE_SECONDS, Fleet, Weights
from srl_jax.rollout.vllm_server import ServerError, read_group
from srl_jax.rollout.vllm_weights import GENERATE, Probe, served_rank
from srl_jax.rollout.weights_folder import WeightsFolder, raise_in_all

TRIES = 8  # of one group, before the run ends
BACK_OFF = 0.2  # seconds before the second try; doubles
REQUEST_SECONDS = 120.0  # of a request, besides those for its tokens


class WrongRequest(EngineError, UserError):
  """Every server refuses a request. As after any EngineError, what was trained is saved."""


class VllmEngine:
  """Samples from running vLLM servers (rollout.engine.Engine).

  No seeds are sent: a server's batches differ from run to run, so seeds would not make runs equal,
  and a generator for each request slows vLLM down.

  With several trainer processes each makes its engine, and all call `load_weights` together. Those
  that were given servers, one process or each with its own, share the prompts.

  Args:
    servers: base URLs of this process, see vllm_server.Server for which are allowed; none where
      another process has all.
    tokenizer: decodes the responses' text.
    stop_ids: token ids that end a response.
    weights_root: folder that the run and the servers share, see weights_folder.WeightsFolder.
    lag: how many versions old a rollout's weights may be.
    public_servers: allow public addresses.
    patience: seconds to wait for a server when none is left.
    merged_push: push adapters merged into the weights where a server takes none.
    check: called every second of a wait; what it raises ends the wait.
    seconds_per_token: the slowest rate to put up with, of one response.
    say: prints a line.
  """

  def __init__(
    self,
    servers: Sequence[str],
    tokenizer,
    stop_ids: Sequence[int],
    *,
    weights_root: str = "/dev/shm",
    lag: int = 0,
    public_servers: bool = False,
    patience: float = 600.0,
    merged_push: bool = False,
    seconds_per_token: float = 1.0,
    check: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
  ):
    self.tokenizer, self.stop_ids, self.lag = tokenizer, tuple(stop_ids), lag
    self.seconds_per_token, self._check = seconds_per_token, check
    self.merged_push = merged_push
    self.version = self._vocab_size = None
    self._counts = Counter()
    self._fleet = self._files = None
    try:
      self._files = WeightsFolder(weights_root, bool(servers))
      error = None
      if servers:
        try:
          self._fleet = Fleet(
            servers, public=public_servers, patience=patience, check=check, say=say
          )
        except (UserError, EngineError, Stopped) as raised:  # raised when the other processes know
          error = raised
      found = _common_limits(self._fleet, error)
      self._dtype, self._max_length, self._lora_rank, self._part = found
    except BaseException:
      self.close()
      raise

  def load_weights(self, model: Qwen2, version: int) -> None:
    """See Engine. Raises EngineError when no server takes them, or one then fails the check;
    UserError when adapters would have to be merged and may not be.
    """
    probe = Probe(model, version, self._max_length)
    if model.lora is not None and not self._takes(model.lora.shape.rank):
      model = merge(model, self._dtype)
    self._vocab_size = model.config.vocab_size
    folder = self._files.write(model, version, self._dtype)
    error = None
    if self._fleet:
      try:
        self._push(model, folder, version, probe)
      except Exception as raised:  # raised again when the other processes know
        error = raised
    try:
      raise_in_all(error)
    finally:
      self._files.keep_only(folder)  # kept for lost servers, which get them when they recover
    self.version = version

  def _takes(self, rank: int) -> bool:
    """Whether the servers take adapters of that rank; UserError where they may not be merged."""
    if self._lora_rank >= rank:
      return True
    if self._dtype == "bfloat16" and not self.merged_push:
      raise UserError(
        f"rollout.servers: they take adapters up to rank {self._lora_rank}, the run's have {rank};"
        f" start them with launch/vllm_server.sh MODEL --enable-lora --max-lora-rank="
        f"{served_rank(rank)}. With lora.merged_push=True a run merges the adapters into the"
        " weights, where bfloat16 rounds small changes away; evaluate takes a folder of"
        " srl_jax.export --merge"
      )
    return False

  def _push(self, model: Qwen2, folder: str, version: int, probe: Probe) -> None:
    exact = self._dtype == model.config.dtype == "float32"
    dtype, adapters = "float32" if exact else "bfloat16", model.lora is not None
    self._fleet.push(Weights(self._files.root, folder, version, probe, dtype, adapters))

  def close(self) -> None:
    for part in (self._fleet, self._files):
      if part:
        part.close()

  def stats(self) -> dict[str, float]:
    """Groups sampled again since the last call, by reason: see why_rejected; failed."""
    found = {f"groups_{reason}": float(count) for reason, count in self._counts.items()}
    self._counts.clear()
    return found

  def sample(
    self, prompts: Sequence[Prompt], n: int, params: SamplingParams
  ) -> Iterator[list[Rollout]]:
    if self.version is None:
      raise RuntimeError("VllmEngine.sample: call load_weights first")
    prompts = prompts[self._part]
    if not prompts:
      return
    self._check_modes(params.temperature)
    # One thread for each request in flight: it blocks in an HTTP call and takes the next prompt.
    waiting, ended, cancelled = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
    for prompt in prompts:
      waiting.put(prompt)

    def work():
      try:
        while not cancelled.is_set():
          prompt = waiting.get_nowait()
          ended.put((prompt, self._group(prompt, n, params, cancelled)))
      except queue.Empty:
        return
      except BaseException as error:  # raised again in the caller's thread
        ended.put((None, error))

    count = min(len(prompts), self._fleet.slots(n))
    threads = []
    for _ in range(count):
      threads.append(threading.Thread(target=work, daemon=True))
      threads[-1].start()
    try:
      for _ in prompts:  # as many results as prompts, in the order in which they end
        prompt, found = self._next(ended)
        if prompt is None:
          raise found
        yield [self._rollout(prompt, *one) for one in found]
    finally:  # also when the caller stops in the middle: cut calls are aborted by the server
      cancelled.set()
      # A thread may begin a call after a cut, so all are cut again until no thread is left. One
      # that still connects is left alone: it ends by itself and sends nothing.
      deadline = time.monotonic() + CLOSE_SECONDS
      while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        for member in self._fleet.members:
          member.server.cut(cancelled)
        for thread in threads:
          thread.join(0.05)

  def _next(self, ended: queue.SimpleQueue):
    while True:
      self._check()
      try:
        return ended.get(timeout=1)
      except queue.Empty:
        pass

  def _check_modes(self, temperature: float) -> None:
    # At temperature 1 (and greedy, by the definition of Rollout) raw log-probs are the right ones.
    if temperature in (0.0, 1.0):
      return
    for member in self._fleet.ready():
      if member.limits.logprobs_mode != "processed_logprobs":
        raise UserError(
          f"{member.server.url} gives log-probs before the temperature ({temperature}) is applied; "
          "start it with launch/vllm_server.sh or --logprobs-mode=processed_logprobs"
        )

  def _request(self, prompt: Prompt, n: int, params: SamplingParams) -> dict:
    """The body of a request to GENERATE, but for the name of the model."""
    return {
      "token_ids": list(prompt.token_ids),
      "sampling_params": dict(
        n=n,
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        # Written out, because the server's defaults are those of the model's
        # generation_config.json, which may truncate the distribution.
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        logprobs=0,
        # Only our stop ids end a response, as in the built-in engine.
        ignore_eos=True,
        stop_token_ids=list(self.stop_ids),
        detokenize=False,
      ),
    }

  def _group(self, prompt: Prompt, n: int, params: SamplingParams, cancelled: threading.Event):
    """[(token_ids, logprobs, finish_reason, version)] of n responses; None once cancelled."""
    body = self._request(prompt, n, params)
    timeout = REQUEST_SECONDS + params.max_tokens * self.seconds_per_token
    last = "nothing"
    for attempt in range(TRIES):
      if attempt and cancelled.wait(BACK_OFF * 2 ** (attempt - 1)):
        return None
      # Waits until a server has room for n more responses.
      member = self._fleet.lease(n, cancelled)
      if member is None:
        return None
      try:
        served = member.served
        named = {"model": served.model} | body
        answer = member.server.call("POST", GENERATE, named, timeout=timeout, owner=cancelled)
        group = read_group(answer, n, params.max_tokens, self.stop_ids, self._vocab_size)
        model = str(answer.get("model"))[:100]
        group = [(*found, served.versions(model, labels)) for *found, labels in group]
      except ServerError as error:
        last, reason = str(error), "failed"
        if cancelled.is_set():
          return None
        # A request that timed out may have left the server hanging: it is lost at once.
        is_late = isinstance(error.__cause__, TimeoutError)
        self._fleet.fault(member, error, cancelled, fatal=is_late)
      except UserError as error:
        raise WrongRequest(
          f"prompt {prompt.id} ({len(prompt.token_ids)} tokens): {error}"
        ) from error
      else:
        self._fleet.good(member)
        reason = why_rejected(group, self.version, self.lag)
        if reason is None:
          return group
        last = f"{member.server.url} gave a group that was {reason}"
        if reason == "rejected_old":  # it was restarted, or another run pushed weights to it
          self._fleet.fault(member, EngineError(last), cancelled, fatal=True)
      finally:
        self._fleet.release(member, n)
      self._counts[reason] += 1
    raise EngineError(f"prompt {prompt.id}: {TRIES} tries gave no usable group; the last: {last}")

  def _rollout(self, prompt: Prompt, token_ids, logprobs, finish_reason, versions) -> Rollout:
    return Rollout(
      prompt_id=prompt.id,
      token_ids=token_ids,
      sampler_logprobs=logprobs,
      finish_reason=finish_reason,
      weight_version=int(versions[0]),
      text=decode(self.tokenizer, token_ids),
    )


def _common_limits(fleet: Fleet | None, error: Exception | None) -> tuple[str, int, int, slice]:
  """What all processes' servers have in common, and this process's prompts.

  Args:
    fleet: this process's servers, or None.
    error: the UserError, EngineError or Stopped why there is none though the process has addresses,
      or None.

  Returns (type, smallest max_model_len, smallest rank of adapters, prompts). Raises, in each
  process, the error of one, and UserError when the types differ or no process has a server.
  """
  limits = (fleet.dtype, fleet.max_model_len, fleet.lora_rank) if fleet else None
  part = {"limits": limits, "error": str(error) if isinstance(error, UserError) else None}
  gathered = hosts.all_gather_lists([part], None if part["error"] else error)
  if error:
    raise error
  with_servers, types, lengths, ranks = [], set(), [], []
  for process, found in enumerate(gathered):
    if found["error"]:
      raise UserError(f"process {process}: {found['error']}")
    if found["limits"]:
      dtype, length, rank = found["limits"]
      with_servers.append(process)
      types.add(dtype)
      lengths.append(length)
      ranks.append(rank)
  if not with_servers:
    raise UserError("rollout.servers: no process has the address of a server")
  if len(types) > 1:
    raise UserError(
      "rollout.servers: the processes' servers compute in float32 and bfloat16; start all of them "
      "with one --dtype"
    )
  part = slice(0)  # no prompts
  process = jax.process_index()
  if process in with_servers:
    # Prompts are dealt in turn: the i-th of k processes with servers has prompts i, i + k, ...
    part = slice(with_servers.index(process), None, len(with_servers))
  return types.pop(), min(lengths), min(ranks), part


def why_rejected(group: list[tuple], version: int, lag: int) -> str | None:
  """Why a group must not be trained on: aborted, rejected_mixed or rejected_old; None if it may."""
  # A server's labels are text. With lag 1 a group may be of the version before the newest.
  allowed = set(map(str, range(version - lag, version + 1)))
  mixed = old = False
  for _, _, finish_reason, versions in group:
    if finish_reason == "abort":
      return "aborted"
    mixed |= len(set(versions)) > 1
    old |= not allowed.issuperset(versions)
  if mixed:
    return "rejected_mixed"
  return "rejected_old" if old else None
