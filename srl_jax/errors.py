"""The package's own exceptions."""


class UserError(ValueError):
  """Bad input: a config, file, flag or server's answer that cannot be used.

  The message has the value, its place and the remedy. Commands print it as one line and exit with
  code 2 (command_line.run); any other exception is a bug and keeps its traceback.
  """


class EngineError(Exception):
  """A rollout engine cannot continue. The weights are unaffected: the run saves and ends."""


class Stopped(Exception):
  """SIGTERM or Ctrl-C was sent to this or another process of the run."""


def out_of_memory(error: Exception, advice: str) -> UserError | None:
  """Returns the UserError for a device that ran out of memory; None for any other error of JAX.

  Args:
    error: from JAX.
    advice: which settings to lower, as the end of a sentence.
  """
  if "RESOURCE_EXHAUSTED" not in str(error):
    return None
  reason = " ".join(str(error).split())[:160]
  return UserError(f"a device ran out of memory ({reason}). Lower {advice}")
