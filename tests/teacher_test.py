"""srl_jax.teacher against a real HTTP server with scripted answers and faults."""

import collections
import contextlib
import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from srl_jax import teacher
from srl_jax.data import chat, solutions, sources
from srl_jax.data.chat import BadAnswer, ChatServer

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEY = "sk-test"


def solved(answer):
  return f"1. **Add**: one more\n\n2. **Say**: so\n\nFinal answer: \\boxed{{{answer}}}"


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers with `server.script(problem, number of earlier requests for it)`."""

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    problem = body["messages"][-1]["content"]
    with self.server.lock:
      before = self.server.asked[problem]
      self.server.asked[problem] += 1
      self.server.seen.append((self.path, self.headers.get("Authorization"), body))
    answer = self.server.script(problem, before)
    status, said = answer if isinstance(answer, tuple) else (200, completion(answer))
    self.send_response(status)
    self.end_headers()
    with contextlib.suppress(ConnectionError):  # the client may close the connection early
      for part in said if self.server.drip else [said]:
        self.wfile.write(part.encode())
        time.sleep(self.server.drip)

  def log_message(self, *args):
    """Keeps the test's output clean."""


def completion(text, finish_reason="stop"):
  message = {"role": "assistant", "content": text}
  return json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}]})


@pytest.fixture
def server():
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    server.lock, server.asked, server.seen = threading.Lock(), collections.Counter(), []
    server.drip = 0.0  # seconds between two characters
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def command(folder, url, *flags, key=KEY):
  required = [f"--server={url}", "--model=expert", "--problems=problems.jsonl", "--output=out"]
  return dict(
    args=[sys.executable, "-m", "srl_jax.teacher", *required, *flags],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": key},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(folder, url, *flags, key=KEY):
  return subprocess.run(**command(folder, url, *flags, key=key), check=False)


def lines(path):
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def problems(tmp_path):
  """A folder with problems.jsonl: problem k is "k+1?" with the answer k + 1."""
  rows = [{"problem": f"{k}+1?", "answer": str(k + 1), "name": f"p{k}"} for k in range(6)]
  (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return tmp_path


def test_teacher_keeps_solutions_and_counts_the_rest_by_reason(problems, server):
  answers = {
    "0+1?": [solved(1)],
    # As from a server with a chat template that opens the block.
    "1+1?": [solved(7), "1. so\n2. \\boxed{7}</think>\n" + solved(2)],
    "2+1?": ["<think>1. a\n2. b</think>So \\boxed{3}.", "1. **Only**: \\boxed{3}", solved(3)],
    "3+1?": ["I do not know.", solved(4)],
    "4+1?": [
      (200, completion(solved(5), "length")),
      (503, "busy"),
      "<think>hm</think>" + solved(5),
    ],
    "5+1?": [solved(0)] * 3,
  }
  server.script = lambda problem, before: answers[problem][before]
  fields = "--fields=problem=problem,answer=answer,id=name"
  result = run(problems, server.url, "--attempts=3", "--parallel=2", fields)
  assert (result.returncode, result.stderr) == (0, "")
  assert result.stdout.splitlines() == [
    "problems                  6",
    "solutions kept            5",
    "answers                   13",
    "  not kept: cut_off       1",
    "  not kept: no_answer     1",
    "  not kept: no_steps      1",
    "  not kept: single_step   1",
    "  not kept: wrong_answer  4",
    "wrote out/solutions.jsonl and attempts.jsonl",
  ]
  kept = lines(problems / "out" / "solutions.jsonl")
  assert [row["id"] for row in kept] == ["p0", "p1", "p2", "p3", "p4"]
  assert all(row["solution"] == solved(row["answer"]) for row in kept)
  assert kept[0] == {
    "id": "p0",
    "problem": "0+1?",
    "answer": "1",
    "solution": solved(1),
    "model": "expert",
  }
  path, authorization, body = server.seen[0]
  assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
  assert (body["model"], body["messages"][0]["content"]) == ("expert", teacher.SYSTEM)
  assert KEY not in "".join(file.read_text() for file in (problems / "out").iterdir())

  asked = server.asked.total()
  again = run(problems, server.url, "--attempts=3", fields)
  assert again.stdout == result.stdout and server.asked.total() == asked


def test_teacher_continues_after_a_kill(problems, server):
  held = threading.Event()

  def script(problem, before):
    if problem == "5+1?" and not held.is_set():
      held.wait(30)
      return (500, "too late")
    return solved(int(problem[0]) + 1)

  server.script = script
  process = subprocess.Popen(**command(problems, server.url, "--parallel=2"))
  attempts = problems / "out" / "attempts.jsonl"
  deadline = time.monotonic() + 60
  while not attempts.exists() or len(attempts.read_text().splitlines()) < 5:
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  held.set()
  with attempts.open("a") as file:
    file.write('{"id": "cut o')
  before = server.asked.copy()
  result = run(problems, server.url)
  assert (result.returncode, result.stderr) == (0, "")
  assert server.asked - before == {"5+1?": 1}
  assert len(lines(attempts)) == len(lines(problems / "out" / "solutions.jsonl")) == 6


def test_teacher_keeps_answers_before_an_error(problems, server):
  server.script = lambda problem, before: (
    (400, '{"error": {"message": "too\\nlong"}}')
    if problem == "3+1?"
    else solved(int(problem[0]) + 1)
  )
  result = run(problems, server.url, "--parallel=1")
  assert result.returncode == 2
  assert result.stderr.startswith("error: problem ") and result.stderr.count("\n") == 1
  assert result.stderr.endswith("/v1/chat/completions: HTTP 400: too long\n")
  kept = [row["answer"] for row in lines(problems / "out" / "solutions.jsonl")]
  assert kept[:3] == ["1", "2", "3"] and "4" not in kept


@pytest.mark.parametrize(
  ("answer", "message"),
  [
    ((401, "no"), "HTTP 401: no; set OPENAI_API_KEY"),
    ((404, ""), "HTTP 404: Not Found; check --server and --model"),
    ((307, ""), "HTTP 307"),
    ((200, "<html>Hello"), "'<html>Hello'; is it an OpenAI-compatible server?"),
    ((200, '{"choices": []}'), "chat completion"),
  ],
)
def test_teacher_reports_a_server_that_refuses(problems, server, answer, message):
  server.script = lambda problem, before: answer
  result = run(problems, server.url + "/v1/", "--parallel=1")
  assert result.returncode == 2
  assert message in result.stderr and result.stderr.count("\n") == 1
  assert KEY not in result.stderr
  assert max(server.asked.values()) == 1  # another request would get the same answer


DEEP = '{"choices": [' + "[" * 100_000
LISTED = json.dumps([{"type": "text", "text": "1. a"}])


def content(json_text):
  """Returns a chat completion with this JSON as its content."""
  return completion("CONTENT").replace('"CONTENT"', json_text)


@pytest.mark.parametrize("parallel", [1, 4])
def test_teacher_counts_bad_answers(problems, server, parallel):
  """One bad answer of each kind, even as the very first; then each problem is solved."""
  bad = [content(LISTED), content("3"), content('"half \\ud83d"'), DEEP, "<html>Hello"]
  bad += [completion(solved(6), ["stop"])]

  def script(problem, before):
    k = int(problem[0])
    return (200, bad[k]) if not before else solved(k + 1)

  server.script = script
  result = run(problems, server.url, f"--parallel={parallel}", "--attempts=2")
  assert (result.returncode, result.stderr) == (0, "")
  assert "  not kept: bad_answer  6" in result.stdout.splitlines()
  assert len(lines(problems / "out" / "solutions.jsonl")) == 6


def test_chat_bounds_the_size_and_time_of_an_answer(problems, server, monkeypatch):
  """In memory and in time: one body is too large, one arrives a byte at a time."""
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  monkeypatch.setattr(chat, "_LARGEST_ANSWER", 1 << 20)
  endless = ChatServer(server.url, "expert", timeout=1.0)
  ask = lambda: endless.chat([{"role": "user", "content": "Q"}], temperature=0.0, max_tokens=1)
  server.script = lambda problem, before: (200, "x" * (1 << 22))
  with pytest.raises(BadAnswer, match="more than 1 MiB"):
    ask()
  server.script, server.drip = lambda problem, before: (200, " " * 1000), 0.05
  begun = time.monotonic()
  with pytest.raises(BadAnswer, match="did not end in 1 s"):
    ask()
  assert time.monotonic() - begun < 20  # the whole answer takes 50 s


@pytest.mark.parametrize("body", ['{"error": {"message": "key %s is wrong"}}', "%s is wrong", DEEP])
def test_teacher_hides_a_key_that_the_server_repeats(problems, server, body):
  server.script = lambda problem, before: (401, body.replace("%s", KEY))
  result = run(problems, server.url, "--parallel=1")
  assert result.returncode == 2 and result.stderr.count("\n") == 1
  assert "HTTP 401" in result.stderr and KEY not in result.stderr


def test_teacher_refuses_a_key_that_no_header_holds(problems, server):
  result = run(problems, server.url, key="sk-secret\nX: 1")
  assert result.returncode == 2 and result.stderr.startswith("error: OPENAI_API_KEY: ")
  assert "secret" not in result.stdout + result.stderr and not server.seen


@pytest.mark.parametrize("field", ["problem", "answer", "id"])
def test_teacher_refuses_half_a_character_in_a_problem(problems, server, field):
  row = {"problem": "1+1?", "answer": "2", "id": "a"} | {field: "half \ud83d"}
  (problems / "half.jsonl").write_text(json.dumps(row) + "\n")
  fields = "--fields=problem=problem,answer=answer,id=id"
  result = run(problems, server.url, "--problems=half.jsonl", fields)
  assert result.returncode == 2 and result.stderr.startswith("error: half.jsonl:1: ")
  assert result.stderr.count("\n") == 1 and not server.seen


def test_teacher_reports_that_no_server_answers(problems, server):
  server.server_close()
  result = run(problems, server.url, "--parallel=1")
  assert result.returncode == 2
  assert "no answer in 3 tries ([Errno 111] Connection refused)" in result.stderr
  assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--server=localhost:8000"], "error: --server='localhost:8000' "),
    (["--server=http://localhost:x"], "error: --server='http://localhost:x' "),
    (["--server=http://me:secret@localhost"], "error: --server: "),
    (["--problems=gone.jsonl"], "error: gone.jsonl "),
    (["--fields=problem=problem,answer=gold"], "error: problems.jsonl:1: no field 'gold'"),
    (["--fields=problem=problem"], "error: data.fields.answer"),
    (["--fields=solution=x"], "error: --fields: 'solution=x' "),
    (["--model=other"], "error: out/attempts.jsonl has answers of 'expert', not of 'other'"),
    (["--problems=other.jsonl"], "error: out/attempts.jsonl has answers to a problem"),
  ],
)
def test_teacher_refuses_bad_input(problems, flags, message):
  (problems / "other.jsonl").write_text('{"problem": "9+1?", "answer": 10}\n')
  (problems / "out").mkdir()
  attempt = {
    "id": "x",
    "problem": "0+1?",
    "model": "expert",
    "number": 1,
    "text": "",
    "reason": "a",
  }
  (problems / "out" / "attempts.jsonl").write_text(json.dumps(attempt) + "\n")
  result = run(problems, "http://127.0.0.1:9", *flags)
  assert result.returncode == 2
  assert result.stderr.startswith(message) and result.stderr.count("\n") == 1


def test_system_prompt_form_splits_into_steps():
  form = teacher.SYSTEM.rpartition("The form is:\n\n")[2]
  split = solutions.split_solution(form)
  assert [step.title for step in split.steps] == [
    "Title of the first step",
    "Title of the second step",
  ]
  assert split.conclusion == "Final answer: \\boxed{answer}"
  assert teacher.judge(form, "stop", "answer", "Q?") is None
  hints = sources.step_examples("srl", "p", "Q?", form, None, title_hint=True, keep_last_step=True)
  assert all(example.hint for example in hints)
