"""API keys of servers: which are accepted, and that no message shows one."""

import pytest

from srl_jax import addresses
from srl_jax.errors import UserError


@pytest.mark.parametrize(
  "key", ["sk-secret\n", "sk-secret\r\nX-Header: 1", "sk-\u00e9secret", "\0sk-secret"]
)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key, monkeypatch):
  monkeypatch.setattr(addresses.os, "environ", {"SOME_KEY": key})
  with pytest.raises(UserError, match="SOME_KEY") as caught:
    addresses.api_key("SOME_KEY")
  assert "secret" not in str(caught.value)


def test_keys_that_are_taken(monkeypatch):
  monkeypatch.setattr(addresses.os, "environ", {"SOME_KEY": "sk-secret", "EMPTY": ""})
  found = [addresses.api_key(name) for name in ("SOME_KEY", "EMPTY", "UNSET")]
  assert found == ["sk-secret", None, None]


def test_a_key_that_a_server_repeats_is_left_out():
  assert addresses.without_secret("key sk-secret is wrong", "sk-secret") == "key *** is wrong"
  assert addresses.without_secret("no key", None) == "no key"
