"""Properties of patches: why one is empty, what it touches, which patches do the same."""

import pytest

from srl_jax.errors import UserError
from srl_jax.evals.swe import instances, patches

CODE = 'def f(x):\n  """Doc."""\n  return x  # as it is\n'


def test_normal_form_refuses_what_is_no_patch():
  assert patches.refusal("a.py", CODE, CODE + "\n\n  \n") == "blank_lines"
  assert patches.refusal("a.py", CODE, CODE + "def\n") == "syntax"
  assert patches.refusal("a.py", "print 1\n", "print 2\n") is None  # it did not parse before
  assert patches.refusal("a.txt", CODE, CODE + "def\n") is None
  assert patches.refusal("a.py", CODE, CODE + "\0") == "syntax"
  assert patches.refusal("a.py", CODE, "(" * 5000) == "syntax"
  assert patches.refusal("a.py", CODE, CODE.replace("return x", "return 1")) is None


def test_normal_form_is_of_the_code_alone():
  old = {"a.py": CODE}
  form = lambda text: patches.normal_form(old, {"a.py": text})
  one = form("def f(x):\n  return (x + 1)\n")
  assert one == form('def f(x):\n    "Other."\n    # because\n    return x+1')
  assert one != form("def f(x):\n  return 1 + x\n") and one != form(CODE)
  assert form(CODE.replace("as it is", "unchanged")) == ()  # a comment is no change


def test_vote_takes_the_most_common_patch():
  a, b, c = ("a",), ("b",), ("c",)
  assert patches.vote([a, b, b]) == 1
  assert patches.vote([None, c, b, c, b]) == 1  # of equals the first
  assert patches.vote([None, None, a]) == 2  # an empty patch has no vote
  assert patches.vote([None]) is patches.vote([]) is None


def test_touches_tests_finds_what_decides_a_test_run():
  change = lambda path: patches.diff({path: b"a\n"}, {path: b"b\n"}).decode()
  harmless = ["sphinx/ext/autodoc.py", "a/testutils.py", "contest.py", "docs/index.txt"]
  assert [patches.touches(change(path)) for path in harmless] == [[]] * 4
  flagged = ["conftest.py", "a/conftest.py", "setup.cfg", "pyproject.toml", "tox.ini", "x.pth"]
  flagged += ["tests/test_a.py", "a/test_b.py", "a/tests/helpers.py", "sitecustomize.py"]
  for path in flagged:
    assert patches.touches(change(path)) == [path]


def test_paths_of_a_patch_of_any_name():
  files = {"a b/é.py": b"1\n", 'q"uote.py': b"1\n", "plain.py": b"1\n"}
  patch = patches.diff(files, dict.fromkeys(files, b"2\n")).decode()
  assert patches.paths_of(patch) == ["a b/é.py", "plain.py", 'q\\"uote.py']
  assert patches.diff(files, files) == b""


def test_load_reads_lists_and_json_text(shared):
  swe = shared / "data" / "swe"
  full = instances.load(str(swe / "swebench_verified_mini_30.jsonl"))
  assert len(full) == 30 and full[0].fail_to_pass and full[0].version == "3.1"
  development = instances.load(str(swe / "swebench_dev_full_rows_5.jsonl"))  # one row twice
  assert len(development) == 4 and all(len(row.fail_to_pass) for row in development)
  assert len(instances.load(str(swe / "swebench_verified_60.jsonl"), limit=7)) == 7


@pytest.mark.parametrize(
  "row, complaint",
  [
    ('{"instance_id": "a"}', "'repo'"),
    (
      '{"instance_id": "a", "repo": "o/n", "base_commit": "c", "problem_statement": " "}',
      "no text",
    ),
    (
      '{"instance_id": "a", "repo": "o/n", "base_commit": "c", "problem_statement": "i",'
      ' "FAIL_TO_PASS": "x"}',
      "FAIL_TO_PASS",
    ),
  ],
)
def test_load_refuses_rows_that_cannot_be_used(tmp_path, row, complaint):
  (tmp_path / "rows.jsonl").write_text(row)
  with pytest.raises(UserError, match=complaint):
    instances.load(str(tmp_path / "rows.jsonl"))
