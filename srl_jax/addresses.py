"""Addresses of servers and keys for them: no file and no error message may show a secret."""

import os
import unicodedata

from srl_jax.errors import UserError


def check_no_secret(url: str, *, place: str, remedy: str) -> None:
  """Raises UserError, which does not show the address, if a password or a key could be in it.

  Args:
    url: an address, or several in one text.
    place: the flag or the key of the config that has it.
    remedy: how to give the server a key, as the end of a sentence.
  """
  # Some characters of other alphabets are an @ once normalized, as urllib does it.
  url = unicodedata.normalize("NFKC", url)
  if "@" in url or "%40" in url:
    raise UserError(f"{place}: an address with a user name; {remedy}")
  if "?" in url or "#" in url:
    raise UserError(f"{place}: an address with a query or a fragment is not a base URL; {remedy}")


def api_key(variable: str) -> str | None:
  """The key in an environment variable, if it has one; UserError for one that no header can hold.

  The error does not show the key.
  """
  key = os.environ.get(variable)
  if key and not (key.isascii() and key.isprintable()):
    raise UserError(
      f"{variable}: the key has a character that no key has, such as a line break at its end; set"
      " it again without"
    )
  return key or None


def without_secret(text: str, secret: str | None) -> str:
  """A server's text as it may be shown: a server may repeat the key that it was given."""
  return text.replace(secret, "***") if secret else text
