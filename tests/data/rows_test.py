"""Reading rows: every error message includes file and line."""

import sys
import types

import pytest

from srl_jax.data.rows import hub_rows, json_lines


def test_a_bom_crlf_and_blank_lines_are_fine(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "\xc3\xa9"}\n\n')
  assert list(json_lines(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": "é"})]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", r"a.jsonl is empty"),
    (b"\n \n", r"a.jsonl is empty"),
    (b'{"a": 1}\n{"a": \n', r"a.jsonl:2: .*Expecting value"),
    (b'{"a": ' + b"[" * 100_000, r"a.jsonl:1: .*recursion"),
    (b'{"a": 1}\n\n{"a": "\xff"}\n', r"a.jsonl:3: .*'utf-8' codec"),
    (b"[1, 2]\n", r"a.jsonl:1: .*list"),
  ],
)
def test_bad_files(tmp_path, content, message):
  path = tmp_path / "a.jsonl"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    list(json_lines(path))


def test_a_missing_file(tmp_path):
  with pytest.raises(ValueError, match="nope.jsonl"):
    next(json_lines(tmp_path / "nope.jsonl"))


def test_hub_rows(monkeypatch):
  def load_dataset(name, *, split):
    if name == "gone":
      raise ConnectionError("no route\nto the hub")
    return [{"question": f"{name} {split}"}]

  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
  assert list(hub_rows("a/b", "test")) == [("a/b[test] row 0", {"question": "a/b test"})]
  with pytest.raises(ValueError, match=r"'gone' from .* \(ConnectionError: no route to the hub\)"):
    next(hub_rows("gone", "train"))
