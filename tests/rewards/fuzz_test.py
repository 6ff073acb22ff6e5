"""Fuzzing of the rewards; tests/fuzzing.py has the settings."""

import difflib
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from srl_jax.rewards.answers import equal_pairs, extract_answer
from srl_jax.rewards.matching import matched_characters
from tests.fuzzing import CASES, fuzzed
from tests.rewards.answers_test import PIECES
from tests.rewards.matching_test import LONG, TEXT
from tests.stopwatch import Stopwatch

pytestmark = pytest.mark.slow


MORE_PIECES = [
  *PIECES,
  *[
    r"\pi",
    r"\gamma",
    r"\infty",
    r"\times10^{",
    r"\langle",
    r"\rangle",
    r"\overline{",
    r"\pm",
    "e",
  ],
  *[
    "x=",
    "y",
    "10^{400}",
    "_2",
    "1/2",
    " ",
    "2.0^{9999}",
    "{,}000",
    "，",
    "nan",
    r"\cup",
    "i",
    "E",
  ],
]
ANSWER = st.lists(st.one_of(st.sampled_from(MORE_PIECES), st.characters()), max_size=10)
PAIRS = st.lists(st.tuples(ANSWER.map("".join), ANSWER.map("".join)), min_size=100, max_size=100)


def test_similarity_equals_the_standard_library(capsys):
  stopwatch = Stopwatch()
  with capsys.disabled():

    @fuzzed()
    @hypothesis.given(st.one_of(TEXT, LONG), st.one_of(TEXT, LONG), st.booleans())
    def check(a, b, autojunk):
      with stopwatch:
        matched = matched_characters(a, b, autojunk=autojunk)
      blocks = difflib.SequenceMatcher(None, a, b, autojunk=autojunk).get_matching_blocks()
      assert matched == sum(block.size for block in blocks)

    check()
    print(f"worst time of a pair: {stopwatch.worst:.3f} s")


def test_answers_equal_of_any_text_is_a_verdict(capsys):
  r"""Nothing raises or hangs, an answer equals itself, and \infty is never paid for a number."""
  worst = 0.0
  with capsys.disabled():

    @fuzzed(CASES // 100)
    @hypothesis.given(PAIRS)
    def check(pairs):
      nonlocal worst
      start = time.monotonic()
      verdicts = equal_pairs([(extract_answer(a), b) for a, b in pairs])
      worst = max(worst, time.monotonic() - start)
      assert len(verdicts) == len(pairs)
      stated = [x for pair in pairs for x in pair if x.strip() and extract_answer(x) == x.strip()]
      assert all(equal_pairs([(answer, answer) for answer in stated]))
      numbers = [str(len(a)) for a, _ in pairs]
      assert not any(equal_pairs([(r"1.0\infty", number) for number in numbers]))

    check()
    print(f"worst time of a hundred pairs: {worst:.1f} s")
