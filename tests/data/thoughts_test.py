"""Thoughts inside an expert's text: apart from it for prompts and rewards, reasoning for sft."""

import pytest

from srl_jax.data.responses import monologues, outside_think_blocks, whole_format_failure
from srl_jax.data.thoughts import as_response, split_thoughts

SOLUTION = "1. Add 2\n2. Double"


@pytest.mark.parametrize(
  ("text", "thoughts", "solution"),
  [
    (f"<think>1. first 2. second</think>\n{SOLUTION}", "1. first 2. second", SOLUTION),
    (f"1. first\n2. second\n</think>\n\n{SOLUTION}", "1. first\n2. second", SOLUTION),
    ("<think>1. first\n2. second", "1. first\n2. second", ""),
    ("<think>a</think>1. x\n<think>b</think>2. y", "a\nb", "1. x\n2. y"),
    (f"<think>a <think>b</think> c</think>{SOLUTION}", "a b\nc", SOLUTION),
    (f"<Thinking>a</Thinking>{SOLUTION}", "a", SOLUTION),
    (
      f"<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>{SOLUTION}<|end_of_solution|>",
      "a",
      SOLUTION,
    ),
    (f" {SOLUTION} ", "", f" {SOLUTION} "),
  ],
)
def test_split_thoughts_returns_thoughts_and_solution(text, thoughts, solution):
  assert split_thoughts(text) == (thoughts, solution)
  response = as_response(text, "")
  if thoughts and solution:
    assert whole_format_failure(response) is None
    assert outside_think_blocks(response) == solution
    assert "\n".join(monologues(response)) in (thoughts, thoughts.replace("\n", ""))
  else:
    assert response == solution


def test_as_response_prefers_the_column_of_reasoning():
  text = f"<think>of the text</think>{SOLUTION}"
  for reasoning in ("of the column", "<think>of the column</think>"):
    assert as_response(text, reasoning) == f"<think>\nof the column\n</think>\n{SOLUTION}"
