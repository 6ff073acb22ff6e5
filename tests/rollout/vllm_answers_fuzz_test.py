"""Mutated answers of a vLLM server give a sound group or a ServerError.

tests/fuzzing.py has the settings.
"""

import copy
import json
import socket
import threading

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from srl_jax.rollout.vllm_client import why_rejected
from srl_jax.rollout.vllm_server import Server, ServerError, read_group
from tests.fuzzing import fuzzed
from tests.stopwatch import Stopwatch

N, MAX_TOKENS, STOPS, VOCABULARY = 2, 6, [5, 6], 39

VALUES = st.one_of(
  st.sampled_from([None, True, False, -1, 0, 1, 5, 38, 39, 2**31, 2**40, 10**400, -(10**400)]),
  st.sampled_from([0.0, -0.5, 1.0, -1e300, -9999.0, float("nan"), float("-inf"), float("inf")]),
  st.sampled_from(["", "stop", "length", "abort", "7", "8", "\ud83d", [], {}, [[]], [5], [1, 2]]),
  st.integers(),
  st.floats(),
  st.text(max_size=3),
)


def sound():
  """An answer with a response that stopped and one that was cut off, of the weights 7."""
  choices = []
  for index, token_ids in enumerate([[7, 8, 5], [9, 9, 9, 9, 9, 9]]):
    content = [{"token_id": t, "logprob": -0.25} for t in token_ids]
    reason = "stop" if token_ids[-1] in STOPS else "length"
    choice = {"index": index, "token_ids": token_ids, "logprobs": {"content": content}}
    spans = [{"version": "7", "start": 0, "end": len(token_ids)}]
    choices.append(choice | {"finish_reason": reason, "weight_versions": spans})
  return {"id": "x", "choices": choices}


def places(value, path=()):
  """The paths of all values in JSON."""
  yield path
  items = []
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list):
    items = enumerate(value)
  for key, inner in items:
    yield from places(inner, (*path, key))


@st.composite
def answers(draw):
  """An answer as bytes: values or parts of a sound one replaced, removed or repeated, or bytes."""
  answer = sound()
  for _ in range(draw(st.integers(0, 3))):
    path = draw(st.sampled_from(list(places(answer))[1:] or [()]))
    if not path:
      break
    holder = answer
    for key in path[:-1]:
      holder = holder[key]
    kind = draw(st.sampled_from(["replace", "replace", "remove", "repeat"]))
    if kind == "replace":
      holder[path[-1]] = copy.deepcopy(draw(VALUES))
    elif kind == "remove":
      del holder[path[-1]]
    elif isinstance(holder, list):
      holder.insert(path[-1], copy.deepcopy(holder[path[-1]]))
  data = bytearray(json.dumps(answer).encode())
  for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
    data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
  return bytes(data)


@pytest.fixture
def serving():
  """(Server, answer): a server that answers every request with answer[0]."""
  listener, answer = socket.create_server(("127.0.0.1", 0)), [b""]

  def serve():
    while True:
      try:
        connection, _ = listener.accept()
      except OSError:
        return
      with connection:
        connection.recv(1 << 16)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer[0])}\r\n\r\n"
        connection.sendall(head.encode() + answer[0])

  thread = threading.Thread(target=serve, daemon=True)
  thread.start()
  yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}"), answer
  listener.shutdown(socket.SHUT_RDWR)
  listener.close()
  thread.join()


def check_sound(group):
  """Asserts the properties that the trainer relies on."""
  assert len(group) == N
  for token_ids, logprobs, reason, versions in group:
    assert 0 < len(token_ids) == len(logprobs) <= MAX_TOKENS
    assert all(type(t) is int and 0 <= t < VOCABULARY for t in token_ids)
    assert not set(token_ids[:-1]) & set(STOPS)
    assert reason == ("stop" if token_ids[-1] in STOPS else "length")
    assert all(type(p) is float for p in logprobs)
    assert np.isfinite(np.array(logprobs, np.float32)).all() and max(logprobs) <= 1e-3
    assert set(versions) == {"7"}


@pytest.mark.slow
def test_read_group_of_mutated_answers_is_sound_or_refused(serving, capsys):
  (server, answer), stopwatch, taken = serving, Stopwatch(), 0

  @fuzzed()
  @hypothesis.given(answers())
  def check(data):
    nonlocal taken
    answer[0] = data
    try:
      with stopwatch:
        found = server.call("POST", "/inference/v1/generate", {}, timeout=10)
        group = read_group(found, N, MAX_TOKENS, STOPS, VOCABULARY)
        reason = why_rejected(group, 7, 0)
    except ServerError as error:
      str(error).encode()  # it can be printed
      return
    if reason is None:
      check_sound(group)
      taken += 1

  with capsys.disabled():
    check()
    print(f"{taken} groups were taken; worst time of an answer: {stopwatch.worst:.4f} s")


def test_read_group_accepts_a_sound_answer(serving):
  server, answer = serving
  answer[0] = json.dumps(sound()).encode()
  found = server.call("POST", "/", {}, timeout=10)
  check_sound(read_group(found, N, MAX_TOKENS, STOPS, VOCABULARY))
