"""From a response to new contents: the format, how edits are applied, and every gold patch."""

import pathlib
import subprocess
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srl_jax.evals.swe import edits, instances, patches
from tests.evals.swe import gold

BLOCK = """```python
### a.py
<<<<<<< SEARCH
{}
=======
{}
>>>>>>> REPLACE
```"""


def outcomes(text, files):
  changed, found = edits.apply(edits.parse(text), files)
  return changed, [outcome.outcome for outcome in found]


def test_apply_one_edit():
  text = "I change b.\n" + BLOCK.format("b", "c\nd")
  assert outcomes(text, {"a.py": "a\nb\n"}) == ({"a.py": "a\nc\nd\n"}, ["applied"])


def test_apply_searches_whole_lines():
  """Neither a piece of a line nor other indentation is found."""
  for search in ("x = 1", " x = 10", "x = 10  "):
    assert outcomes(BLOCK.format(search, "y"), {"a.py": "x = 10\n"}) == ({}, ["not_found"])


def test_apply_refuses_or_replaces_every_occurrence():
  changed, found = edits.apply(edits.parse(BLOCK.format("b", "c")), {"a.py": "b\na\nb\nb\n"})
  assert changed == {"a.py": "c\na\nc\nc\n"}
  assert (found[0].outcome, found[0].found) == ("several", 3)


def test_parse_gives_edits_of_a_fence_its_path():
  second = "<<<<<<< SEARCH\nb\n=======\nB\n>>>>>>> REPLACE\n```"
  text = BLOCK.format("a", "A").removesuffix("```") + second
  assert outcomes(text, {"a.py": "a\nb\n"}) == ({"a.py": "A\nB\n"}, ["applied", "applied"])
  apart = BLOCK.format("a", "A") + "\n```python\n" + second  # the path ends with its fence
  assert outcomes(apart, {"a.py": "a\nb\n"}) == ({"a.py": "A\nb\n"}, ["applied", "no_path"])


def test_apply_of_an_empty_replacement_deletes():
  text = BLOCK.replace("{}\n>>>", ">>>").format("b")
  assert outcomes(text, {"a.py": "a\nb\nc\n"}) == ({"a.py": "a\nc\n"}, ["applied"])


@pytest.mark.parametrize(
  "text, outcome",
  [
    (BLOCK.format("z", "c"), "not_found"),
    (BLOCK.format("b", "b"), "no_change"),
    (BLOCK.format("b", "c").replace("a.py", "z.py"), "not_shown"),
    (BLOCK.format("b", "c").replace("### a.py\n", ""), "no_path"),
    (BLOCK.format("b", "c").replace("=======\n", ""), "no_divider"),
    (BLOCK.format("b", "c").replace(">>>>>>> REPLACE\n", ""), "unclosed"),
    (BLOCK.format("b", "c").replace("```", ""), "no_fence"),
    (BLOCK.replace("{}\n===", "===").format("c"), "empty_search"),
  ],
)
def test_apply_refuses_edits_without_effect(text, outcome):
  """They are dropped, each with its reason, and the edit beside them still counts."""
  files = {"a.py": "a\nb\n"}
  assert outcomes(text, files) == ({}, [outcome])
  good = BLOCK.format("a", "A")
  assert outcomes(good + "\n" + text, files) == ({"a.py": "A\nb\n"}, ["applied", outcome])


def test_parse_accepts_other_fences():
  for word, lenient in (("python", False), ("py", True), ("", True), ("diff", True)):
    (edit,) = edits.parse(BLOCK.format("b", "c").replace("```python", f"```{word}"))
    assert (edit.malformed, edit.lenient) == (None, lenient)


def test_apply_of_repeated_and_overlapping_edits():
  same = BLOCK.format("b", "b\nb")
  assert outcomes(same + same.join("\n\n"), {"a.py": "b\n"})[1] == ["applied", "repeated"]
  text = BLOCK.format("a\nb", "c") + "\n" + BLOCK.format("b", "d")
  assert outcomes(text, {"a.py": "a\nb\n"}) == ({"a.py": "c\n"}, ["applied", "overlaps"])


def test_parse_keeps_fences_inside_the_code():
  """A docstring with a fence ends nothing; of several dividers the one that the file allows."""
  files = {"a.py": '"""\n```\nTitle\n=======\n"""\nx\n'}
  search, replace = files["a.py"].removesuffix("\nx\n"), '"""Title."""'
  changed, found = outcomes(BLOCK.format(search, replace), files)
  assert (changed, found) == ({"a.py": '"""Title."""\nx\n'}, ["applied"])
  (outcome,) = edits.apply(edits.parse(BLOCK.format(search, replace)), files)[1]
  assert outcome.ambiguous  # the lines before the first divider are in the file, too
  second = BLOCK.format("x", "=======\ny")  # here only the first can be the divider
  changed, (outcome,) = edits.apply(edits.parse(second), {"a.py": "x\nz\n"})
  assert changed == {"a.py": "=======\ny\nz\n"} and not outcome.ambiguous


def test_apply_keeps_line_ends():
  """CRLF stays CRLF, a missing last line end stays missing, a form feed is no line end."""
  assert outcomes(BLOCK.format("b", "c\nd"), {"a.py": "a\r\nb\r\n"})[0] == {
    "a.py": "a\r\nc\r\nd\r\n"
  }
  assert outcomes(BLOCK.format("b", "c\nd"), {"a.py": "a\nb"})[0] == {"a.py": "a\nc\nd"}
  assert outcomes(BLOCK.format("b", "c"), {"a.py": "a\x0cb\nb\u2028\nb\n"})[0] == {
    "a.py": "a\x0cb\nb\u2028\nc\n"
  }
  crlf = BLOCK.format("b", "c").replace("\n", "\r\n")
  assert outcomes(crlf, {"a.py": "a\nb\n"}) == ({"a.py": "a\nc\n"}, ["applied"])


LINE = st.text(st.sampled_from("ab \t\x0c\x85\u2028#`=<>é"), max_size=6).filter(
  lambda line: line.strip() not in (edits.SEARCH, edits.DIVIDER, edits.REPLACE)
)
LINES = st.lists(LINE, min_size=1, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["a.py", "b/c.py"]), LINES, LINES), max_size=4))
@settings(max_examples=200, deadline=None)
def test_parse_reads_what_render_writes(blocks):
  found = edits.parse(edits.render(blocks))
  assert [(edit.path, *edit.readings()[0]) for edit in found] == [
    (path, search, replace) for path, search, replace in blocks
  ]
  assert not any(edit.malformed or edit.lenient for edit in found)


TEXT = st.lists(
  st.tuples(st.sampled_from(["", "a", "b", "b\x0c", "\u2028c"]), st.sampled_from(["\n", "\r\n"])),
  max_size=8,
).map(lambda lines: "".join(map("".join, lines)))
TEXT = st.tuples(TEXT, st.sampled_from(["", "end"])).map("".join)


@given(TEXT, TEXT)
@settings(max_examples=60, deadline=None)
def test_diff_is_applied_by_git(old, new):
  """git apply(diff(old, new)) gives new, for any line ends and any last line."""
  patch = patches.diff({"d/a.py": old.encode()}, {"d/a.py": new.encode()})
  assert bool(patch) == (old != new)
  if not patch:
    return
  with tempfile.TemporaryDirectory() as name:
    file = pathlib.Path(name) / "d" / "a.py"
    file.parent.mkdir()
    file.write_bytes(old.encode())
    subprocess.run(["git", "apply", "-"], cwd=name, input=patch, check=True)
    assert file.read_bytes() == new.encode()


# Git found other common lines when the dataset was made; the bytes that result are the same.
CUT_ANOTHER_WAY = ["django__django-11885"]
FILES = ["swebench_verified_60", "swebench_verified_mini_30", "swebench_dev_full_rows_5"]


@pytest.mark.parametrize("name", FILES)
def test_edits_express_every_gold_patch(shared, name):
  """patch -> edits -> response -> edits -> files -> patch: the same bytes as the patch gives.

  The old files are made from the patch: its lines at their places, and other lines between them.
  """
  for instance in instances.load(str(shared / "data" / "swe" / f"{name}.jsonl")):
    old, new = gold.files_of(instance.patch)
    assert list(old) == instance.gold_files()
    blocks = []
    for path in old:
      blocks += gold.edits_between(path, old[path], new[path])
    changed, found = edits.apply(edits.parse(edits.render(blocks)), old)
    assert changed == new, instance.id
    assert {outcome.outcome for outcome in found} == {"applied"}
    encoded = [{path: text.encode() for path, text in side.items()} for side in (old, changed)]
    again = gold.hunks_of(patches.diff(*encoded).decode())
    assert (again == gold.hunks_of(instance.patch)) == (instance.id not in CUT_ANOTHER_WAY)
