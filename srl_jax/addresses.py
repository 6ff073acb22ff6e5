"""Checks addresses of servers and API keys, so that no file and no error message shows a secret."""

import os
import unicodedata

from srl_jax.errors import UserError


def check_no_secret(url: str, *, place: str, remedy: str) -> None:
  """Raises UserError if an address may contain a password or a key; the error does not show it.

  Args:
    url: an address, or several in one text.
    place: the flag or the config key that has it, for the message.
    remedy: how to give the server a key, as the end of a sentence.
  """
  # NFKC, as in urllib: some characters of other alphabets become an "@" when normalized.
  url = unicodedata.normalize("NFKC", url)
  if "@" in url or "%40" in url:
    raise UserError(f"{place}: an address with a user name; {remedy}")
  if "?" in url or "#" in url:
    raise UserError(f"{place}: an address with a query or a fragment is not a base URL; {remedy}")


def api_key(variable: str) -> str | None:
  """Returns the key in an environment variable, None if it is not set.

  Raises:
    UserError: the key cannot be sent in an HTTP header; the error does not show the key.
  """
  key = os.environ.get(variable)
  if key and not (key.isascii() and key.isprintable()):
    raise UserError(
      f"{variable}: the key contains a character that is not allowed in a header, such as a line"
      " break at its end; set it again without"
    )
  return key or None


def without_secret(text: str, secret: str | None) -> str:
  """Returns a server's text with the key masked: an error message may repeat the key."""
  return text.replace(secret, "***") if secret else text
