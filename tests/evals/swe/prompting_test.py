"""Prompts: what is in them, what is left out for want of room, and which files a response names."""

import pytest

from srl_jax.data.tokenizer import EncodedPrompt
from srl_jax.errors import UserError
from srl_jax.evals.swe import edits, prompting

WORDS = prompting.wording("plain", None, None)


def encode(messages):
  """A token for each character."""
  return EncodedPrompt(list("".join(message["content"] for message in messages).encode()), False)


def test_repair_prompt_has_the_issue_and_whole_files():
  files = {"a.py": "x = 1\n", "b/c.py": "y = 2"}
  system, user = WORDS.repair_messages("It is {files} and {issue}.", files)
  assert (system["role"], user["role"]) == ("system", "user")
  assert "It is {files} and {issue}." in user["content"]  # an issue is no template
  assert "### a.py\nx = 1\n\n### b/c.py\ny = 2\n```" in user["content"]


def test_wording_shows_an_edit_that_parses():
  """The form that the prompt shows is the form that is read."""
  (edit,) = edits.parse(WORDS.repair.rpartition("For example")[2])
  assert (edit.path, edit.malformed, edit.lenient) == ("shop/prices.py", None, False)


def test_wording_think_asks_for_thoughts():
  assert "<think>" in prompting.wording("think", None, None).system
  assert "<think>" not in WORDS.system


def test_wording_is_replaced_by_files(tmp_path):
  file = tmp_path / "prompt.txt"
  file.write_text("Mend {issue} in {files}")
  words = prompting.wording("plain", None, str(file))
  assert words.repair_messages("I", {"a": "b"})[1]["content"] == "Mend I in ### a\nb"
  with pytest.raises(UserError, match="lacks {tree}"):
    prompting.wording("plain", str(file), None)
  with pytest.raises(UserError, match="cannot be read"):
    prompting.wording("plain", None, str(tmp_path / "none.txt"))


def pack(files, limit):
  return prompting.pack("An issue.", list(files), files.get, WORDS, encode, limit)


def test_pack_files_takes_whole_files_in_order():
  """A file that does not fit is left out with the reason; a smaller one after it gets in."""
  base = len(encode(WORDS.repair_messages("An issue.", {})).token_ids)
  files = {"a.py": b"a" * 100, "long.py": b"b" * 1000, "c.py": b"c" * 100}
  packed = pack(files, base + 300)
  assert list(packed.shown) == ["a.py", "c.py"] and list(packed.left_out) == ["long.py"]
  assert packed.left_out["long.py"].startswith("too long")
  assert packed.prompt == encode(WORDS.repair_messages("An issue.", packed.shown))
  exact = len(packed.prompt.token_ids)
  assert list(pack(files, exact).shown) == ["a.py", "c.py"]
  assert list(pack(files, exact - 1).shown) == ["a.py"]
  nothing = pack(files, base)
  assert nothing.prompt is None and len(nothing.left_out) == 3


def test_pack_files_leaves_out_what_cannot_be_shown():
  files = {"latin.py": b"# coding: latin-1\n\xe9\n", "none.py": None, "a.py": b"x\n"}
  packed = pack(files, 10_000)
  assert list(packed.shown) == ["a.py"]
  assert packed.left_out == {"latin.py": "not UTF-8", "none.py": "not in the repository"}


def test_named_files_by_hand():
  names = ["a.py", "b/c.py", "d.py", "e.py", "f.py", "g.py"]
  plain = "Here:\n```\na.py\nb/c.py\n```\nother.py\n"
  assert prompting.named_files(plain, names) == (["a.py", "b/c.py"], 0)
  decorated = "1. `a.py`\n- ./b/c.py\n* d.py\n### e.py\na.py\n"
  assert prompting.named_files(decorated, names) == (["a.py", "b/c.py", "d.py", "e.py"], 4)
  assert prompting.named_files("\n".join(names), names)[0] == names[:5]
  assert prompting.named_files("c.py\nb/\nthe file a.py", names) == ([], 0)
