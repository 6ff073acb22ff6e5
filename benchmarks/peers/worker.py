"""Both ends of the pipe to a peer's process: `Peer` here, `serve` there. Standard library only.

An order and an answer are one line of JSON each; an answer has "error" where the peer failed.
"""

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import traceback


class PeerError(Exception):
  """A peer failed, or its process ended."""


class Peer:
  """A process that measures one round for each order.

  Args:
    command: starts it.
    environment: variables besides this process's own.
    log: file for what it prints.
  """

  def __init__(self, command: list[str], environment: dict[str, str], log):
    self.log = log
    with open(log, "w") as out:
      self.process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=out,
        text=True,
        env=os.environ | environment,
        start_new_session=True,  # a process group: `close` also kills the processes that it starts
      )

  def ask(self, order: dict) -> dict:
    """The answer to an order. Raises PeerError."""
    line = ""
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.write(json.dumps(order) + "\n")
      self.process.stdin.flush()
      line = self.process.stdout.readline()
    if not line:  # most often killed for lack of memory
      raise PeerError(f"the process ended with code {self.process.wait(60)}")
    answer = json.loads(line)
    if "error" in answer:
      raise PeerError(answer["error"])
    return answer

  def close(self) -> None:
    """Ends the process and all that it started."""
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
      self.process.wait(timeout=20)
    # What it started may still run, such as vLLM's engine.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()
    self.process.stdout.close()


def serve(cases: dict) -> None:
  """Answers orders until the pipe ends.

  Args:
    cases: {case: prepare}; prepare(order) returns (do, versions): do(turn) does one round and
      returns a dict with its "seconds", versions are {package: version}.
  """
  # Answers go through a copy of stdout; what libraries print goes to the log.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  sys.stdout.reconfigure(line_buffering=True)
  do = None
  for line in sys.stdin:
    order = json.loads(line)
    try:
      if "case" in order:
        do, found = cases[order["case"]](order)
        answer = {"versions": found}
      else:
        answer = do(order["turn"])
    except Exception as error:  # of any library; sent to the measuring process
      traceback.print_exc()
      answer = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def versions(*packages: str) -> dict[str, str]:
  """{package: version} of this environment."""
  return {package: importlib.metadata.version(package) for package in packages}
