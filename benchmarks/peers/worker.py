"""Both ends of the pipe to a peer's process: `Peer` here, `serve` there. Standard library only.

A peer is a separate process for each case. It gets the case as JSON on its command line and then,
line by line, the number of a turn; it answers with one line of JSON and waits for the next. Peers
take turns, A B A B, one at a time, so that other load on the machine affects all of them alike.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys


class Peer:
  """A process that measures one round for each turn.

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

  def ask(self, turn: int) -> dict:
    """The figures of a turn. Raises RuntimeError if the process ended."""
    line = ""
    with contextlib.suppress(BrokenPipeError):
      print(turn, file=self.process.stdin, flush=True)
      line = self.process.stdout.readline()
    if not line:  # an exception, or killed for lack of memory
      last = self.log.read_text().strip().rpartition("\n")[2]
      code = self.process.wait(60)
      raise RuntimeError(f"the process ended with code {code}, its log {self.log} with {last}")
    return json.loads(line)

  def close(self) -> None:
    """Ends the process and all that it started."""
    with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
      self.process.communicate(timeout=20)
    # What it started may still run, such as vLLM's engine.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()


def serve(cases: dict) -> None:
  """Prepares the case of the command line, then answers turns until the pipe ends.

  Args:
    cases: {case: prepare}; prepare(order) returns do, and do(turn) does one round and returns a
      dict with its "seconds".
  """
  # Answers go through a copy of stdout; what libraries print goes to the log.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  order = json.loads(sys.argv[1])
  do = cases[order["case"]](order)
  for turn in sys.stdin:
    print(json.dumps(do(int(turn))), file=answers, flush=True)
