"""The format of responses: well-formed or a reason, never both."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl_jax.data import prompts, responses
from srl_jax.data.responses import (
  Response,
  after_opened_tag,
  format_failure,
  monologues,
  outside_think_blocks,
  parse_response,
  whole_format_failure,
)

# ---------------------------------------------------------------------------------- one step


@pytest.mark.parametrize(
  ("text", "response"),
  [
    ("<think>m</think>a", Response("m", "a")),
    ("\n <think>\nm 1\nm 2\n</think>\n\na 1\na 2\n", Response("m 1\nm 2", "a 1\na 2")),
    ("<think></think>a", Response("", "a")),  # an empty thought is a thought
    ("<think>x < 3 </ think></think>a <b> </b>", Response("x < 3 </ think>", "a <b> </b>")),
  ],
)
def test_parse_response_splits_well_formed_texts(text, response):
  assert format_failure(text) is None
  assert parse_response(text) == response


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "no_open"),
    ("a", "no_open"),
    ("a <think>m</think> a", "no_open"),
    ("</think>a", "no_open"),
    ("m</think>a", "no_open"),
    ("<THINK>m</THINK>a", "no_open"),
    ("<think>m", "no_close"),
    ("<think>m <think> m", "no_close"),
    ("<think>m</think>a<think>m</think>a", "several"),
    ("<think>m<think>m</think>a", "several"),
    ("<think>m</think>a</think>", "several"),
    ("<think>m</think></think>", "several"),
    ("<think>m</think>", "empty_action"),
    ("<think>m</think> \n\t", "empty_action"),
  ],
)
def test_format_failure_names_each_reason(text, reason):
  assert format_failure(text) == reason
  assert parse_response(text) is None


@pytest.mark.parametrize("text", ["<think>m", "<think>m</think>half an act", "a", ""])
def test_format_failure_of_a_response_that_was_cut_off(text):
  assert format_failure(text, "length") == "cut_off"
  assert format_failure(text, finish_reason="abort") == "cut_off"


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("m</think>a", None),
    ("</think>a", None),
    ("m", "no_close"),
    ("<think>m</think>a", "several"),  # the tag that the template wrote, once more
    ("m</think>", "empty_action"),
    ("m</think>a</think>b", "several"),
  ],
)
def test_format_failure_with_a_block_that_the_template_opened(text, reason):
  assert format_failure(text, think_opened=True) == reason
  assert (parse_response(text, think_opened=True) is None) == (reason is not None)


def test_parse_response_takes_the_opened_block_as_monologue():
  assert parse_response(" m \n</think> a ", think_opened=True) == Response("m", "a")


PIECES = st.lists(
  st.sampled_from(["<think>", "</think>", " ", "\n", "a", "think>", "<"]), max_size=9
)


@given(PIECES.map("".join), st.booleans())
def test_parse_response_and_format_failure_exclude_each_other(text, opened):
  response = parse_response(text, think_opened=opened)
  assert (response is None) == (format_failure(text, think_opened=opened) is not None)
  if response:
    inside = "" if opened else "<think>"
    again = f"{inside}{response.monologue}</think>{response.action}"
    assert parse_response(again, think_opened=opened) == response


# ---------------------------------------------------------------------------------- whole solutions


@pytest.mark.parametrize(
  ("text", "solution"),
  [
    ("a", "a"),
    (" <think>m</think>1. a\n<think>m\nm</think>2. b\n", "1. a\n2. b"),
    ("a <think></think> b", "a  b"),
    ("a<think>verify</think>", "a"),
  ],
)
def test_parse_solution_accepts_well_formed_texts(text, solution):
  assert whole_format_failure(text) is None
  assert outside_think_blocks(text) == solution


@pytest.mark.parametrize(
  ("text", "failure"),
  [
    ("", "empty_action"),
    ("<think>m</think> ", "empty_action"),
    ("a <think>m", "no_close"),
    ("a</think>b", "no_open"),
    ("<think>m<think>m</think>a", "no_close"),
    ("<think>m<think>m</think>m</think>a", "several"),
    ("<<think></think>think>", "several"),
  ],
)
def test_parse_solution_names_what_is_malformed(text, failure):
  assert whole_format_failure(text) == failure
  assert whole_format_failure(text, "length") == "cut_off"


def test_parse_solution_with_a_block_that_the_template_opened():
  assert whole_format_failure("m</think>a", think_opened=True) is None
  assert whole_format_failure("a", think_opened=True) == "no_close"


@given(PIECES.map("".join), st.booleans())
def test_parse_solution_leaves_no_tag(text, opened):
  if whole_format_failure(text, think_opened=opened) is None:
    solution = outside_think_blocks(text, think_opened=opened)
    assert solution == solution.strip() != ""
    assert "<think>" not in solution and "</think>" not in solution


def test_split_blocks_keeps_every_character():
  text = "a<think> m1 </think>b<think>m2"
  assert outside_think_blocks(text) == "ab"
  assert monologues(text) == ["m1", "m2"]
  assert outside_think_blocks("m</think>a", think_opened=True) == "a"
  assert monologues("m</think>a", think_opened=True) == ["m"]
  assert outside_think_blocks("a</think>b") == "a</think>b"


def test_prompts_exports_the_public_names():
  for name in ("Response", "parse_response", "format_failure"):
    assert getattr(prompts, name) is getattr(responses, name)


# ---------------------------------------------------------------------------------- opened blocks


@pytest.mark.parametrize(
  "turn", ["<think>\nAdd 3.\n</think>\n1. 7", " <think>a</think>\n1. 7\n<think>b</think>", "1. 7"]
)
def test_format_failure_of_text_after_an_opened_tag(turn):
  """With the template's tag it is the same response: of one block, of several, or of none."""
  rest = after_opened_tag(turn)
  assert outside_think_blocks(rest, think_opened=True) == outside_think_blocks(turn)
  assert [text for text in monologues(rest, think_opened=True) if text] == monologues(turn)
  assert whole_format_failure(rest, think_opened=True) is None
