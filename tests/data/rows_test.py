"""Reading tables: every complaint names its place."""

import sys
import types

import pytest

from srl_jax.data.rows import hub_rows, json_lines


def test_json_lines_accepts_bom_crlf_and_blank_lines(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": "\xc3\xa9"}\n\n')
  assert list(json_lines(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": "é"})]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", r"a.jsonl is empty"),
    (b"\n \n", r"a.jsonl is empty"),
    (b'{"a": 1}\n{"a": \n', r"a.jsonl:2: broken JSON: Expecting value"),
    (b'{"a": ' + b"[" * 100_000, r"a.jsonl:1: broken JSON: maximum recursion depth"),
    (b'{"a": 1}\n\n{"a": "\xff"}\n', r"a.jsonl:3: broken JSON: 'utf-8' codec"),
    (b"[1, 2]\n", r"a.jsonl:1: expected a JSON object, found a list"),
  ],
)
def test_json_lines_refuses_broken_files(tmp_path, content, message):
  path = tmp_path / "a.jsonl"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    list(json_lines(path))


def test_json_lines_refuses_a_missing_file(tmp_path):
  with pytest.raises(ValueError, match="nope.jsonl does not exist"):
    next(json_lines(tmp_path / "nope.jsonl"))


def test_hub_rows_yields_rows_and_names_errors(monkeypatch):
  def load_dataset(name, *, split):
    if name == "gone":
      raise ConnectionError("no route\nto the hub")
    return [{"question": f"{name} {split}"}]

  monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
  assert list(hub_rows("a/b", "test")) == [("a/b[test] row 0", {"question": "a/b test"})]
  with pytest.raises(ValueError, match="'gone' .*no route to the hub"):
    next(hub_rows("gone", "train"))
