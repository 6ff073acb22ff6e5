"""Fuzzing of the splitters; tests/fuzzing.py has the settings."""

import json
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from srl_jax.data.solutions import split_solution
from srl_jax.data.trajectories import split_actions
from srl_jax.errors import UserError
from tests.data.solutions_test import PIECES, assert_nothing_lost
from tests.data.trajectories_test import EDIT, SUBMIT, VIEW, message, tool_call, xml_run
from tests.fuzzing import fuzzed
from tests.stopwatch import Stopwatch

pytestmark = pytest.mark.slow

SECONDS = 1.0  # per call; an algorithm that is not linear takes minutes

LONG_PIECES = [
  "a" * 5000,
  " " * 5000,
  "`" * 5000,
  "~~~",
  "`",
  "- " * 500,
  "\n1. a" * 500,
  "\n2. b" * 50,
]
LONG_PIECES += ["**answer", "```\nx\n```\n" * 500, "__", ":", "\n1. **A**: b", "\n# ", "*" * 500]
TEXT = st.lists(st.one_of(PIECES, st.sampled_from(LONG_PIECES), st.text(max_size=5)), max_size=30)


def test_split_steps_is_fast_on_any_solution(capsys):
  stopwatch = Stopwatch()
  with capsys.disabled():

    @fuzzed()
    @hypothesis.given(TEXT.map("".join))
    def check(text):
      with stopwatch:
        split_solution(text)
      assert stopwatch.last < SECONDS
      assert_nothing_lost(text)

    check()
    print(f"worst time of a solution: {stopwatch.worst:.3f} s")


JUNK = st.recursive(
  st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
  lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
  ),
  max_leaves=5,
)
CALL_PIECES = [
  "<function=a>\n",
  "<function=",
  "</function>",
  "<parameter=a>",
  "</parameter>\n",
  "\n",
]
CALL_PIECES += [
  EDIT,
  VIEW,
  SUBMIT,
  " " * 5000,
  "a" * 5000,
  "\n<function=a>\n" * 500,
  "\ud83d",
  "[" * 5000,
]
CALLS = st.lists(st.sampled_from(CALL_PIECES), max_size=8).map("".join)


@st.composite
def mutated_runs(draw):
  """A valid run in either form, with random values replaced, removed or repeated."""
  arguments = {"command": "view", "view_range": [1, 2]}
  run = [*xml_run(VIEW, EDIT), message("assistant", "T", tool_calls=tool_call("a.b", arguments))]
  run += [message("tool", [{"type": "text", "text": "shown"}]), message("assistant", SUBMIT)]
  run = json.loads(json.dumps(run))  # copies, so that a mutation changes one place only
  for _ in range(draw(st.integers(1, 4))):
    parent, key = draw(st.sampled_from(list(places(run))))
    kind = draw(st.sampled_from(["junk", "text", "remove", "repeat"]))
    if kind == "remove":
      del parent[key]
    elif kind == "repeat" and isinstance(parent, list):
      parent.append(parent[key])
    else:
      parent[key] = draw(CALLS if kind == "text" else JUNK)
    if not run:
      break
  return json.dumps(run) if draw(st.booleans()) else run


def places(parent):
  """Yields (list or dictionary, key) of every value in a run."""
  keys = range(len(parent)) if isinstance(parent, list) else list(parent)
  for key in keys:
    yield parent, key
    if isinstance(parent[key], list | dict):
      yield from places(parent[key])


def test_steps_of_mutated_runs_are_split_or_refused(capsys):
  stopwatch, refused = Stopwatch(), 0
  with capsys.disabled():

    @fuzzed()
    @hypothesis.given(mutated_runs())
    def check(run):
      nonlocal refused
      try:
        with stopwatch:
          steps = split_actions(run)
      except UserError as error:
        refused += 1
        assert re.search(r"message \d+|list of messages|broken JSON", str(error))
      else:
        assert all(isinstance(step.action, str) and step.action for step in steps)
      assert stopwatch.last < SECONDS

    check()
    print(f"refused {refused}; worst time of a run: {stopwatch.worst:.3f} s")
