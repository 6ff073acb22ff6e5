"""Flags and exit codes of the commands: bad input gives one line on stderr and exit code 2.

Bad input is a flag that does not parse (including config overrides), a config file that raises, a
UserError, and a path or a disk that the operating system rejects. Every other exception is a bug
and keeps its traceback.
"""

import contextlib
import difflib
import errno
import functools
import os
import re
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
from absl import app, flags
from ml_collections.config_flags import config_flags

from srl_jax import folders
from srl_jax.errors import UserError

# Names of the threads that compile and sample while the main thread does something else.
DAEMONS = ("compile", "prefetch")
# Errors that a wrong path or missing permissions cause.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_REFUSED += (errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)


def own_flags() -> types.SimpleNamespace:
  """Returns absl's DEFINE functions for the flags of one command, and `values` for `run`.

  absl's own functions register every flag for the whole process, so two commands that both define
  --output could not be imported together.
  """
  values = flags.FlagValues()
  of_command = types.SimpleNamespace(values=values)
  for kind in ("bool", "enum", "float", "integer", "list", "string"):
    name = f"DEFINE_{kind}"
    setattr(of_command, name, functools.partial(getattr(flags, name), flag_values=values))
  return of_command


def two_columns(lines: Sequence[tuple[str, Any]]) -> str:
  """Returns (name, value) pairs as lines of text, with the values aligned."""
  width = max(len(name) for name, _ in lines)
  return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def run(main: Callable[[list[str]], None], own: flags.FlagValues | None = None) -> None:
  """Parses the command line into absl's flags, calls `main(argv)` and exits the process.

  Exit codes: 0; 2 with one line `error: ...` on stderr for bad input; 1 with a traceback for bugs.

  Args:
    main: the command.
    own: its flags, from `own_flags().values`, in addition to absl's.
  """
  # A shell expands a ~ at the beginning of a word only, which is not that of a flag's value.
  sys.argv[:] = [sys.argv[0], *map(at_home, sys.argv[1:])]
  if own is not None:
    # The command that runs may register its flags globally: --help and config overrides need it.
    flags.FLAGS.append_flag_values(own)
    for name in own:
      flags.FLAGS.register_flag_by_module(sys.argv[0], own[name])  # listed by --help

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      _fail(f"unexpected argument {argv[1]!r}; every setting is a flag, --name=value")
    if own is not None:
      own.mark_as_parsed()
    with in_one_line():
      main(argv)

  try:
    app.run(guarded, flags_parser=_parse_flags)
  except SystemExit as end:
    _leave(end.code)
    raise


def _leave(code: int | None) -> None:
  """Ends the process at once, with the exit code, while one of our daemon threads is running.

  Python's finalisation ends a daemon thread in the middle of XLA's code. C++ then aborts the whole
  process, and its exit code is that of a crash.
  """
  if any(thread.name in DAEMONS for thread in threading.enumerate()):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def at_home(argument: str) -> str:
  """Returns an argument with every ~ at the start of a path (after "=", "," or ":") expanded."""
  home = os.path.expanduser("~")
  return re.sub(r"(^|[=,:])~(?=/|$)", lambda match: match[1] + home, argument)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
  """Ends the process with one line and exit code 2 if the block raises an error of bad input."""
  try:
    yield
  except UserError as error:
    _fail(str(error))
  except OSError as error:
    refusal = _refusal(error)
    if not refusal:
      raise
    _fail(refusal)
  except Exception as error:  # libraries in C++ have no OSError for a full disk
    if not folders.is_disk_full(error):
      raise
    reason = " ".join(str(error).split())[:200]
    _fail(f"{reason}: free some disk space, then run the same command again")


def _refusal(error: OSError) -> str | None:
  """Returns the message for an unusable path or a full disk; None for any other error."""
  path = f"{error.filename}: " if error.filename is not None else ""
  if error.errno in folders.FULL:
    return f"{path}{error.strerror}: free some disk space, then run the same command again"
  if path and error.errno in _REFUSED:
    return f"{path}{error.strerror}: check the path and its permissions"
  return None


def _fail(message: str) -> None:
  """Prints one line and exits with code 2."""
  print("error: " + " ".join(message.split()), file=sys.stderr)
  sys.exit(2)


def _parse_flags(argv: list[str]) -> list[str]:
  """Returns the arguments that are not flags; ends the process if a flag is wrong."""
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    # Python before 3.11.4 raises ValueError for null bytes, which absl reports as a flag's error.
    what = "; a config is a Python file" if "null bytes" in str(error) else ""
    _fail(without_traceback(str(error)) + what)
  except SyntaxError as error:
    place = f"{error.filename}:{error.lineno}: " if error.filename else ""
    _fail(f"{place}{error.msg}; a config is a Python file")
  except Exception as error:  # a config file may raise anything
    # Either the config file itself failed, which its traceback shows, ...
    for _, file, _ in _config_flags(argv):
      _check_exists(file)
      _check_runs(file, error)
    # ... or ml_collections did not find an overridden key.
    unknown = isinstance(error, AttributeError | KeyError) and _unknown_key(argv)
    if not unknown:
      raise
    _fail(unknown)
  for name in flags.FLAGS:
    flag = flags.FLAGS[name]
    if config_flags.is_config_flag(flag) and flag.present:
      # ml_collections reports a missing file only when the config is first used.
      _check_exists(config_flags.get_config_filename(flag))
  return rest


def load_config(file: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Returns the config of FILE[:args] with overrides (--config.a.b=v); sets no flag of the process.

  Raises UserError for arguments and overrides that the config refuses.
  """
  alone, argv = flags.FlagValues(), ["", f"--config={file}", *overrides]
  config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=argv)
  try:
    alone(argv)
  except (flags.Error, AttributeError, KeyError) as error:  # as ml_collections raises them
    raise UserError(f"{file}: {without_traceback(str(error))}") from error
  return alone.config


def without_traceback(message: str) -> str:
  """Returns a flag error's message without the traceback that an error in a config adds."""
  head, traced, tail = message.partition("Error whilst parsing config file:")
  if not traced:
    return message
  last = tail.strip().splitlines()[-1].strip()
  return head + last.removeprefix("srl_jax.errors.UserError: ").removeprefix("ValueError: ")


def _check_exists(file: str) -> None:
  """Ends the process if a config file does not exist."""
  path = file.split(":", 1)[0]
  if not os.path.isfile(path):
    _fail(f"config file {path!r} does not exist (looked in {os.path.abspath(path)})")


def _check_runs(file: str, error: Exception) -> None:
  """Ends the process if the config file raised the error or does not define get_config."""
  path = file.split(":", 1)[0]
  line = None  # the innermost line of the file in the traceback
  for entry in traceback.extract_tb(error.__traceback__):
    if os.path.abspath(entry.filename) == os.path.abspath(path):
      line = entry.lineno
  if line is not None:
    _fail(f"{path}:{line}: {type(error).__name__}: {error}")
  if isinstance(error, AttributeError) and "'get_config'" in str(error):
    _fail(f"{path}: it has no function get_config, which returns the config")


def _config_flags(argv: list[str]) -> Iterator[tuple[str, str, list[str]]]:
  """Yields name, file and overridden keys of every config flag on the command line."""
  for name in flags.FLAGS:
    if not config_flags.is_config_flag(flags.FLAGS[name]):
      continue
    # "--config=FILE" or "--config FILE": with one argument per line, one pattern matches both.
    line = "\n".join(argv)
    file = re.search(rf"(?m)^--?{name}[=\n](.*)$", line)
    if file:
      yield name, file[1], re.findall(rf"(?m)^--?(?:no)?{name}\.([^=\n]+)", line)


def _unknown_key(argv: list[str]) -> str | None:
  """Returns the message about the first override of a key that is not in its config, or None."""
  for name, file, overrides in _config_flags(argv):
    known = _keys(load_config(file))  # loaded once more, without overrides, to learn its keys
    for key in overrides:
      if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}"
        return f"--{name}.{key}: the config {file} has no key {key!r}{hint}"
  return None


def _keys(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
  """Returns all keys of a config with their groups: "data.path"."""
  keys = []
  for key in config:
    keys.append(prefix + key)
    if isinstance(config[key], ml_collections.ConfigDict):
      keys += _keys(config[key], f"{prefix}{key}.")
  return keys
