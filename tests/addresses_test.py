"""Keys of servers: which are taken, and that none is shown."""

import pytest

from srl_jax import addresses
from srl_jax.errors import UserError


@pytest.mark.parametrize(
  "key", ["sk-secret\n", "sk-secret\r\nX-Header: 1", "sk-\u00e9secret", "\0sk-secret"]
)
def test_api_key_refuses_what_no_header_holds_and_hides_it(key, monkeypatch):
  monkeypatch.setattr(addresses.os, "environ", {"SOME_KEY": key})
  with pytest.raises(UserError, match="SOME_KEY") as caught:
    addresses.api_key("SOME_KEY")
  assert "secret" not in str(caught.value)


def test_api_key_accepts_keys(monkeypatch):
  monkeypatch.setattr(addresses.os, "environ", {"SOME_KEY": "sk-secret", "EMPTY": ""})
  found = [addresses.api_key(name) for name in ("SOME_KEY", "EMPTY", "UNSET")]
  assert found == ["sk-secret", None, None]


def test_without_key_removes_a_repeated_key():
  assert addresses.without_secret("key sk-secret is wrong", "sk-secret") == "key *** is wrong"
  assert addresses.without_secret("no key", None) == "no key"
