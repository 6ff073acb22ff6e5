"""The package's own exceptions."""


class UserError(ValueError):
  """Bad input: a config, a file, a flag or an answer of a server that cannot be used.

  The message gives the value, its place, and the remedy. Commands print it as one line and exit
  with code 2 (command_line.run); any other exception is a bug and keeps its traceback.
  """


class EngineError(Exception):
  """A rollout engine cannot continue. The weights are untouched: the run saves and ends."""


class Stopped(Exception):
  """SIGTERM or Ctrl-C reached this process or another one of the run."""


def out_of_memory(error: Exception, advice: str) -> UserError | None:
  """The UserError for a device that ran out of memory; None for any other error of JAX.

  advice: what to lower, as the end of a sentence.
  """
  if "RESOURCE_EXHAUSTED" not in str(error):
    return None
  reason = " ".join(str(error).split())[:160]
  return UserError(f"a device ran out of memory ({reason}). Lower {advice}")
