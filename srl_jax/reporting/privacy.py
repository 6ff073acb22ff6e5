"""Removes from settings what a page must not show: folders of this machine, servers, names, keys.

A page is sent to others. Settings contain absolute paths (of models, data and workdirs), addresses
of servers and, in a user's own config, maybe keys.
"""

import contextlib
import getpass
import re
import socket
from collections.abc import Mapping
from typing import Any

# A path that begins at the root, at home, on a drive or two levels up: its last part is shown.
_PATH = re.compile(
  r"(?<![\w./])(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?=\S)(?:[^\s/\\,:;=\"']+[/\\]+)*([^\s/\\,:;=\"']*)"
)
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s,\"']*")
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
_SECRET = re.compile(r"(?i)(?:^|[._-])(?:api_?key|key|token|secret|password|passwd|credentials?)$")
# A value that is itself a key of a service, whatever the name of its setting.
_KEY = re.compile(r"\b(?:sk|hf|ghp|gho|xox[abp]|AKIA)[-_]?[A-Za-z0-9_-]{16,}")


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns flat settings as they may be shown; keys that name a secret are left out."""
  shown = {}
  for key, value in settings.items():
    if not _SECRET.search(key):
      shown[key] = public_value(value)
  return shown


def public_value(value: Any) -> Any:
  """Returns a setting's value without folders, addresses, host and user names, and keys."""
  if isinstance(value, str):
    return public_text(value)
  if isinstance(value, list | tuple):
    return [public_value(item) for item in value]
  if isinstance(value, dict):
    return public_settings(value)
  return value


def public_text(text: str) -> str:
  """Returns a text in which each path has its last part alone, and addresses are left out."""
  text = _URL.sub("(address)", text)
  text = _KEY.sub("(key)", text)
  text = _ADDRESS.sub("(address)", text)
  text = _PATH.sub(lambda match: match[1] or "(folder)", text)
  for name in _private_names():
    text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "(private)", text)
  return text


def _private_names() -> list[str]:
  """Returns the names of this host and of the user, but names that are ordinary words."""
  names = [socket.gethostname()]
  # An error: no name in the environment, and none for the user's number.
  with contextlib.suppress(KeyError, OSError):
    names.append(getpass.getuser())
  return [name for name in names if name not in ("", "root", "localhost", "user")]
