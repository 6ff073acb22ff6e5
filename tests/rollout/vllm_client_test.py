"""The vLLM engine against a fake server that misbehaves on purpose."""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from srl_jax.errors import EngineError
from srl_jax.policy import model as policy_model
from srl_jax.rollout import vllm_fleet, vllm_server
from srl_jax.rollout.engine import Prompt, SamplingParams
from srl_jax.rollout.vllm_client import VllmEngine, why_rejected
from srl_jax.rollout.vllm_server import Server, ServerError, read_group
from srl_jax.rollout.vllm_weights import Probe

CONFIG = policy_model.ModelConfig(
  vocab_size=39,
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=8,
)


class Tokenizer:
  """Decodes token ids as numbers."""

  def decode(self, token_ids, skip_special_tokens):
    return " ".join(map(str, token_ids))


class FakeServer:
  """Answers as a vLLM server with a model that samples 7, 8, 5.

  Fields:
    faults: functions (fake, body) -> answer, status or None, each used for one sampling request.
    health: status of /health.
    requests: (path, body) seen; keys: their Authorization.
    at_once, most_at_once: sampling requests in work.
  """

  def __init__(self, model, seconds=0.0):
    self.probe = Probe(model, 0, 64)
    self.seconds, self.faults, self.health = seconds, [], 200
    self.requests, self.keys, self.version = [], [], "default"
    self.dtype, self.mode, self.slots = "torch.float32", "processed_logprobs", 32
    self.at_once = self.most_at_once = 0
    self.lock = threading.Lock()
    fake = self

    class Handler(BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def do_GET(self):
        self.answer(None)

      def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.answer(json.loads(self.rfile.read(length) or b"null"))

      def answer(self, body):
        fake.keys.append(self.headers.get("Authorization"))
        found = fake.handle(self.path.partition("?")[0], body)
        if found is None:  # hang up
          self.close_connection = True
          return
        status, data = found
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

      def log_message(self, *args):
        pass

    self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.http.daemon_threads = True
    self.url = f"http://127.0.0.1:{self.http.server_port}"
    threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

  def handle(self, path, body):
    self.requests.append((path, body))
    if path == "/health":
      return self.health, b""
    if path == "/server_info":
      model = dict(dtype=self.dtype, max_model_len=64, logprobs_mode=self.mode)
      scheduler = dict(max_num_seqs=self.slots)
      return 200, {"vllm_config": dict(model_config=model, scheduler_config=scheduler)}
    if path == "/finish_weight_update" and body:
      self.version = body["weight_version"]
    if path != "/inference/v1/generate":
      return 200, {}
    params = body["sampling_params"]
    if params["logprobs"]:
      return 200, self.scored(len(body["token_ids"]))
    with self.lock:
      self.at_once += 1
      self.most_at_once = max(self.most_at_once, self.at_once)
      fault = self.faults.pop(0) if self.faults else None
    try:
      time.sleep(self.seconds)
      if fault:
        return fault(self, body)
      return 200, self.sampled(params["n"])
    finally:
      with self.lock:
        self.at_once -= 1

  def scored(self, end):
    logprobs = self.probe.logprobs[end]
    best = np.argsort(logprobs)[-20:]
    top = [dict(token_id=int(i), logprob=float(logprobs[i])) for i in best]
    spans = [dict(version=self.version, start=0, end=1)]
    return {
      "choices": [dict(weight_versions=spans, logprobs=dict(content=[dict(top_logprobs=top)]))]
    }

  def sampled(self, n, versions=None, **changes):
    spans = [dict(version=v, start=0, end=3) for v in versions or [self.version]]
    choice = dict(
      token_ids=[7, 8, 5],
      logprobs=dict(content=[dict(token_id=t, logprob=-1.0) for t in (7, 8, 5)]),
      finish_reason="stop",
      weight_versions=spans,
    )
    return {"choices": [dict(index=i) | choice | changes for i in range(n)]}

  def sampled_as(self, *token_ids, p=-1.0):
    """Two responses of these tokens with the log-prob p each."""
    content = [dict(token_id=t, logprob=p) for t in token_ids]
    reason = "stop" if token_ids[-1] == 5 else "length"
    logprobs = dict(content=content)
    return self.sampled(2, token_ids=list(token_ids), logprobs=logprobs, finish_reason=reason)


DEEP = 7
for _ in range(200):
  DEEP = [DEEP]


@pytest.fixture(scope="module")
def model():
  return policy_model.init(CONFIG, 0)


@pytest.fixture
def fake(model):
  server = FakeServer(model)
  yield server
  server.http.shutdown()
  server.http.server_close()


@pytest.fixture
def make_engine(tmp_path, monkeypatch):
  monkeypatch.setattr(vllm_fleet, "HEALTH_EVERY", 0.05)
  monkeypatch.setattr(vllm_fleet, "START_SECONDS", 2.0)
  monkeypatch.setattr("srl_jax.rollout.vllm_client.BACK_OFF", 0.01)
  engines = []

  def make(*fakes, **settings):
    settings = dict(patience=1.0) | settings
    said = []
    urls = [fake if isinstance(fake, str) else fake.url for fake in fakes]
    engine = VllmEngine(
      urls, Tokenizer(), [5], weights_root=str(tmp_path), say=said.append, **settings
    )
    engine.said = said
    engines.append(engine)
    return engine

  yield make
  for engine in engines:
    engine.close()
  assert not list(tmp_path.glob("srl_jax-*"))
  assert threading.active_count() < 30


def ask(engine, count=4, n=2, **params):
  batch = [Prompt(f"p{i}", (1, 2, 3 + i)) for i in range(count)]
  return list(engine.sample(batch, n, SamplingParams(8, **params)))


def test_sample_returns_whole_groups(fake, make_engine, model):
  engine = make_engine(fake)
  engine.load_weights(model, 3)
  groups = ask(engine)
  assert sorted(group[0].prompt_id for group in groups) == ["p0", "p1", "p2", "p3"]
  rollout = groups[0][1]
  assert (rollout.token_ids, rollout.text, rollout.weight_version) == ((7, 8, 5), "7 8 5", 3)
  assert (rollout.sampler_logprobs, rollout.finish_reason) == ((-1.0, -1.0, -1.0), "stop")
  assert engine.stats() == {}
  sent = [body for path, body in fake.requests if path == "/inference/v1/generate"][-1]
  wanted = dict(n=2, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
  assert wanted.items() <= sent["sampling_params"].items()
  assert "seed" not in sent["sampling_params"]
  routes = [path for path, _ in fake.requests if path in ("/pause", "/resume", "/update_weights")]
  assert routes == ["/pause", "/update_weights", "/resume"]


FAULTS = {
  "no JSON": lambda fake, body: (200, b"<html>"),
  "not ours": lambda fake, body: (200, {"choices": "none"}),
  "a response less": lambda fake, body: (200, fake.sampled(1)),
  "not a number": lambda fake, body: (
    200,
    fake.sampled(
      2, logprobs=dict(content=[dict(token_id=t, logprob=float("nan")) for t in (7, 8, 5)])
    ),
  ),
  "other tokens": lambda fake, body: (200, fake.sampled(2, token_ids=[7, 9, 5])),
  "no end": lambda fake, body: (200, fake.sampled(2, finish_reason="length")),
  "a token beyond the vocabulary": lambda fake, body: (200, fake.sampled_as(39, 8, 5)),
  "a token of 2^40": lambda fake, body: (200, fake.sampled_as(7, 2**40, 5)),
  "a token that is none": lambda fake, body: (200, fake.sampled_as(7, True, 5)),
  "a negative token": lambda fake, body: (200, fake.sampled_as(-1, 8, 5)),
  "a stop in the middle": lambda fake, body: (200, fake.sampled_as(7, 5, 8, 5)),
  "more tokens than max_tokens": lambda fake, body: (200, fake.sampled_as(*[7] * 9, 5)),
  "a log-prob of 400 digits": lambda fake, body: (200, fake.sampled_as(7, 5, p=-(10**400))),
  "a log-prob of 5000 digits": lambda fake, body: (
    200,
    json.dumps(fake.sampled_as(7, 5, p=-77)).replace("-77", "-" + "9" * 5000).encode(),
  ),
  "a log-prob of a clamped infinity": lambda fake, body: (200, fake.sampled_as(7, 5, p=-9999.0)),
  "a log-prob below float32": lambda fake, body: (200, fake.sampled_as(7, 5, p=-1e300)),
  "a log-prob above 0": lambda fake, body: (200, fake.sampled_as(7, 5, p=0.5)),
  "a log-prob as text": lambda fake, body: (200, fake.sampled_as(7, 5, p="-1.0")),
  "one response twice": lambda fake, body: (200, fake.sampled(2, index=0)),
  "no versions": lambda fake, body: (200, fake.sampled(2, weight_versions=None)),
  "deep JSON": lambda fake, body: (200, b"[" * 100_000),
  "deep JSON within": lambda fake, body: (200, fake.sampled(2, token_ids=DEEP)),
  "half a character": lambda fake, body: (500, {"error": {"message": "\ud83d"}}),
  "a deep message": lambda fake, body: (500, b'{"error": {"message": ' + b"[" * 100_000),
  "401": lambda fake, body: (401, {"error": {"message": "who are you?"}}),
  "404": lambda fake, body: (404, {"detail": "Not Found"}),
  "410": lambda fake, body: (410, b""),
  "302": lambda fake, body: (302, b""),
  "500": lambda fake, body: (500, {"error": {"message": "broken"}}),
  "503": lambda fake, body: (503, {"error": {"message": "engine_paused"}}),
  "hangs up": lambda fake, body: None,
  "abort": lambda fake, body: (
    200,
    fake.sampled(2, finish_reason="abort", token_ids=[], logprobs=None),
  ),
  "mixed": lambda fake, body: (200, fake.sampled(2, versions=["2", "3"])),
}


@pytest.mark.parametrize("name", FAULTS)
def test_sample_repeats_a_useless_answer_and_counts_it(fake, make_engine, model, name):
  engine = make_engine(fake)
  engine.load_weights(model, 3)
  fake.faults = [FAULTS[name]]
  groups = ask(engine)
  assert len(groups) == 4
  assert all(r.token_ids == (7, 8, 5) and r.weight_version == 3 for g in groups for r in g)
  reason = {"abort": "aborted", "mixed": "rejected_mixed"}.get(name, "failed")
  assert engine.stats() == {f"groups_{reason}": 1.0}


def test_sample_gives_up_a_server_that_answers_garbage(fake, make_engine, model):
  engine = make_engine(fake, patience=0.3)
  engine.load_weights(model, 3)
  fake.scored = lambda end: {"choices": []}
  fake.faults = [FAULTS["not ours"]] * 100
  with pytest.raises(EngineError) as caught:
    ask(engine)
  assert fake.url in str(caught.value)
  assert "answer not understood" in str(caught.value)
  assert any("cannot be used" in line for line in engine.said)


def test_sample_raises_an_engine_error_for_a_lasting_404(fake, make_engine, model):
  """An EngineError, after which the run saves, not a UserError."""
  engine = make_engine(fake, patience=0.3)
  engine.load_weights(model, 3)
  fake.faults = [FAULTS["404"]] * 100
  fake.scored = lambda end: {"choices": []}  # so that it cannot recover either
  with pytest.raises(EngineError) as caught:
    ask(engine)
  assert "404" in str(caught.value) or "answer not understood" in str(caught.value)
  assert engine.stats()["groups_failed"] >= 3


@pytest.mark.parametrize("part", ["headers", "body"])
def test_sample_leaves_a_server_that_is_too_slow(monkeypatch, part):
  """An answer has to end in time; a socket's timeout alone restarts with every byte."""
  monkeypatch.setattr(vllm_server, "ANSWER_SECONDS", 0.5)
  listener = socket.create_server(("127.0.0.1", 0))
  ended = threading.Event()

  def serve():
    connection, _ = listener.accept()
    with contextlib.suppress(OSError):
      if part == "body":
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
      while not ended.wait(0.05):
        connection.sendall(b"H")
    connection.close()

  thread = threading.Thread(target=serve, daemon=True)
  thread.start()
  begun = time.monotonic()
  server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}")
  with pytest.raises(ServerError, match="60 s") as caught:
    server.call("GET", "/health", timeout=60)
  assert time.monotonic() - begun < 20 and isinstance(caught.value.__cause__, TimeoutError)
  ended.set()
  thread.join()
  listener.close()


@pytest.mark.parametrize(
  "setting",
  [dict(slots=0), dict(slots=-1), dict(slots=10**400), dict(slots="many"), dict(slots=[])],
)
def test_start_refuses_settings_that_it_cannot_read(fake, make_engine, setting):
  vars(fake).update(setting)
  with pytest.raises(ValueError, match=f"{fake.url} .*server_info"):
    make_engine(fake)


PROBES = {
  "no log-probs": [],
  "one log-prob": [dict(token_id=1, logprob=-1.0)],
  "a token beyond the vocabulary": [dict(token_id=39 + i, logprob=-1.0) for i in range(20)],
  "negative tokens": [dict(token_id=-i - 1, logprob=-1.0) for i in range(20)],
  "one token all the time": [dict(token_id=1, logprob=-1.0) for i in range(20)],
  "texts": [dict(token_id=i, logprob="-1.0") for i in range(20)],
  "400 digits": [dict(token_id=i, logprob=-(10**400)) for i in range(20)],
  "nothing": None,
  "deep": DEEP,
}


@pytest.mark.parametrize("name", PROBES)
def test_load_weights_fails_when_its_probe_is_not_answered(fake, make_engine, model, name):
  engine = make_engine(fake)
  fake.scored = lambda end: {
    "choices": [
      dict(
        weight_versions=[dict(version=fake.version)],
        logprobs=dict(content=[dict(top_logprobs=PROBES[name])]),
      )
    ]
  }
  with pytest.raises(EngineError, match="step 3"):
    engine.load_weights(model, 3)
  # The push had paused the server. Its health is polled all the time.
  assert [path for path, _ in fake.requests if path != "/health"][-1] == "/resume"


def test_load_weights_repeats_after_one_bad_answer(fake, make_engine, model):
  engine, handle, bad = make_engine(fake), fake.handle, [(404, b""), (500, b"")]

  def sometimes(path, body):
    return bad.pop() if path == "/update_weights" and bad else handle(path, body)

  fake.handle = sometimes
  with pytest.raises(EngineError, match="step 3 .*update_weights"):
    engine.load_weights(model, 3)
  bad.append((404, b""))
  engine.load_weights(model, 4)
  assert ask(engine)[0][0].weight_version == 4


def test_load_weights_leaves_a_server_that_refuses_weights(model, fake, make_engine):
  other = FakeServer(model)
  engine = make_engine(fake, other)
  handle = fake.handle
  fake.handle = lambda path, body: (404, b"") if "weight" in path else handle(path, body)
  engine.load_weights(model, 3)
  assert len(ask(engine)) == 4
  assert any(f"{fake.url} is lost" in line and "1 left" in line for line in engine.said)
  other.http.shutdown()
  other.http.server_close()


def test_sample_rejects_old_weights_and_pushes_again(fake, make_engine, model):
  engine = make_engine(fake)
  engine.load_weights(model, 3)
  fake.version = "default"  # restarted: it has the weights of its disk
  groups = ask(engine)
  assert all(rollout.weight_version == 3 for group in groups for rollout in group)
  assert engine.stats()["groups_rejected_old"] >= 1
  assert any(fake.url in line and "step 3" in line for line in engine.said)


@pytest.mark.parametrize("lag, reason", [(0, "rejected_old"), (1, None)])
def test_sample_accepts_versions_within_the_lag(lag, reason):
  group = [((1,), (-1.0,), "length", ("6",)), ((1,), (-1.0,), "length", ("7",))]
  assert why_rejected(group, 7, lag) == reason
  assert why_rejected([((1,), (-1.0,), "length", ("8",))], 7, lag) == "rejected_old"
  assert why_rejected([((1,), (-1.0,), "length", ("7", "7"))], 7, lag) is None


def test_sample_does_not_repeat_a_wrong_request(fake, make_engine, model):
  engine = make_engine(fake)
  engine.load_weights(model, 3)
  fake.faults = [lambda fake, body: (400, {"error": {"message": "too long"}})] * 9
  with pytest.raises(ValueError, match="p0 .*400: too long"):
    ask(engine, count=1)
  assert len(fake.faults) == 8


def test_sample_bounds_the_requests_in_flight(fake, make_engine, model):
  fake.slots, fake.seconds = 6, 0.05
  engine = make_engine(fake)
  engine.load_weights(model, 1)
  assert len(ask(engine, count=12)) == 12
  assert fake.most_at_once == 3  # 3 requests of 2 responses


def test_sample_yields_groups_while_others_are_sampled(fake, make_engine, model):
  release = threading.Event()

  def slow(fake, body):
    release.wait(10)
    return 200, fake.sampled(2)

  engine = make_engine(fake)
  engine.load_weights(model, 1)
  fake.faults = [slow]
  groups = engine.sample([Prompt(f"p{i}", (1,)) for i in range(3)], 2, SamplingParams(8))
  next(groups), next(groups)
  release.set()
  assert len(list(groups)) == 1


def test_sample_cuts_a_hanging_request_when_the_caller_stops(fake, make_engine, model):
  engine = make_engine(fake)
  engine.load_weights(model, 1)
  hang = threading.Event()
  fake.faults = [lambda fake, body: hang.wait(20) and None]
  groups = engine.sample([Prompt(f"p{i}", (1,)) for i in range(3)], 2, SamplingParams(8))
  next(groups)
  begun = time.monotonic()
  groups.close()
  assert time.monotonic() - begun < 10  # the request hangs for 20 s
  hang.set()


def test_sample_moves_work_from_a_hanging_server(model, fake, make_engine):
  other = FakeServer(model)
  engine = make_engine(fake, other, seconds_per_token=0.01)
  engine.load_weights(model, 1)
  hang = threading.Event()
  fake.faults = [lambda fake, body: hang.wait(20) and None] * 20
  fake.health = 503
  groups = ask(engine, count=6)
  hang.set()
  assert len(groups) == 6
  assert any(f"{fake.url} is lost" in line and "1 left" in line for line in engine.said)
  other.http.shutdown()
  other.http.server_close()


def test_load_weights_refuses_weights_that_did_not_arrive(fake, make_engine, model):
  engine = make_engine(fake)
  engine.load_weights(model, 1)
  with pytest.raises(EngineError, match="log-probs"):
    engine.load_weights(policy_model.init(CONFIG, 1), 2)  # the fake keeps the old ones
  engine = make_engine(fake)
  fake.handle = lambda path, body, handle=fake.handle: handle(
    path, None if "finish" in path else body
  )
  with pytest.raises(EngineError, match="'2' .*step 4"):
    engine.load_weights(model, 4)


def test_start_names_a_server_that_is_away(make_engine):
  with pytest.raises(ValueError, match=r"127.0.0.1:9 .*/health"):
    make_engine("http://127.0.0.1:9")


def test_start_refuses_a_server_of_another_kind(fake, make_engine):
  fake.handle = lambda path, body: (200, b"" if path == "/health" else b"hello")
  with pytest.raises(ValueError, match="/server_info .*hello"):
    make_engine(fake)


@pytest.mark.parametrize(
  "url, message",
  [
    ("127.0.0.1:8101", "not a base URL"),
    ("ftp://127.0.0.1", "not a base URL"),
    ("http://127.0.0.1:8101/v1", "not a base URL"),
    ("http://127.0.0.1:8101?key=1", "not a base URL"),
    ("http://127.0.0.1:x", "not a base URL .Port could not be cast"),
    ("http://127.0.0.1:99999", "not a base URL .Port out of range"),
    ("http://[::1", "not a base URL .Invalid IPv6"),
    ("http://127.0.0.1:8101#key", "not a base URL"),
    ("https://me:secret@127.0.0.1:8101", "servers: an address with a user name"),
    ("http://8.8.8.8:8101", "public address 8.8.8.8"),
  ],
)
def test_start_refuses_addresses(url, message):
  with pytest.raises(ValueError, match=message):
    Server(url)


def test_start_accepts_addresses():
  assert Server("http://10.1.2.3:8000/").url == "http://10.1.2.3:8000"
  assert Server("http://8.8.8.8", public=True).port == 80


def test_start_reads_the_key_from_the_environment_and_hides_it(fake, monkeypatch):
  monkeypatch.setenv("VLLM_API_KEY", "s3cret")
  fake.handle = lambda path, body: (500, b"no s3cret")
  with pytest.raises(ServerError, match=r"no \*\*\*") as caught:
    Server(fake.url).call("POST", "/x", {}, timeout=1)
  assert fake.keys == ["Bearer s3cret"]
  assert "s3cret" not in str(caught.value)


def test_sample_at_a_temperature_needs_processed_logprobs(fake, make_engine, model):
  fake.mode = "raw_logprobs"
  engine = make_engine(fake)
  engine.load_weights(model, 1)
  assert ask(engine, temperature=0.0)
  with pytest.raises(ValueError, match=r"0\.7.*--logprobs-mode=processed_logprobs"):
    ask(engine, temperature=0.7)


def test_read_group_accepts_a_response_that_was_cut_off(fake):
  fake.version = "4"
  answer = fake.sampled(
    1,
    token_ids=[7, 8],
    finish_reason="length",
    logprobs=dict(content=[dict(token_id=t, logprob=-0.5) for t in (7, 8)]),
  )
  assert read_group(answer, 1, 2, [5]) == [((7, 8), (-0.5, -0.5), "length", ("4",))]


def test_sample_stops_waiting_when_the_run_is_stopped(fake, make_engine, model):
  asked = threading.Event()

  def check():
    if asked.is_set():
      raise InterruptedError("stop")

  engine = make_engine(fake, patience=60.0, check=check)
  engine.load_weights(model, 1)
  fake.health, fake.faults = 503, [FAULTS["hangs up"]] * 100
  threading.Timer(0.5, asked.set).start()
  with pytest.raises(InterruptedError):
    ask(engine)
  with pytest.raises(InterruptedError):
    engine.load_weights(model, 2)
