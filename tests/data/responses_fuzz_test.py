"""Fuzzing of parse_response; tests/fuzzing.py has the settings."""

import hypothesis
import pytest
from hypothesis import strategies as st

from srl_jax.data.responses import (
  CLOSE,
  OPEN,
  format_failure,
  outside_think_blocks,
  parse_response,
  whole_format_failure,
)
from tests.fuzzing import CASES, fuzzed
from tests.stopwatch import Stopwatch

pytestmark = pytest.mark.slow

PIECES = [OPEN, CLOSE, "<think", "think>", "</", ">", " ", "\n", "\x00", "a", "\ud83d"]
PIECES += ["<" * 5000, " " * 5000, OPEN * 2000, CLOSE * 2000, (OPEN + CLOSE) * 2000, "1. **A**: b"]
TEXT = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=12)
REASONS = {None, "cut_off", "no_open", "no_close", "several", "empty_action"}


def test_parse_response_of_any_text_has_a_reason_or_an_action(capsys):
  stopwatch, formed = Stopwatch(), 0
  with capsys.disabled():

    @fuzzed()
    @hypothesis.given(TEXT.map("".join), st.booleans())
    def check(text, think_opened):
      nonlocal formed
      opened = dict(think_opened=think_opened)
      with stopwatch:
        parsed = parse_response(text, **opened)
        failure = format_failure(text, **opened)
        whole = whole_format_failure(text, **opened)
        outside_think_blocks(text, **opened)
      assert stopwatch.last < 0.5
      assert {failure, whole} <= REASONS
      assert (parsed is None) == (failure is not None)
      if parsed:
        formed += 1
        assert parsed.action.strip() and parsed.action in text
        assert OPEN not in parsed.action and CLOSE not in parsed.action

    check()
    print(f"well-formed {formed}; worst time of a response: {stopwatch.worst:.3f} s")
    assert formed > CASES / 1000
