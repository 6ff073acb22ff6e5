"""Figures and their errors, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srl_jax.evals import figures as F


def samples(*answers, gold="7", ended="whole"):
  return [
    {"answer": a, "right": a == gold, "ended": ended, "tokens": 10 * (i + 1)}
    for i, a in enumerate(answers)
  ]


def line(*answers, **more):
  return {"samples": samples(*answers, **more)}


def test_figures_of_a_greedy_pass():
  found = F.figures({"greedy": [line("7"), line("7"), line("1"), line(None, ended="cut_off")]})
  assert found["greedy"]["value"] == 0.5
  # Variance with ddof 1: 4 * 0.25 / 3; over 4 problems.
  assert found["greedy"]["se"] == pytest.approx(math.sqrt(1 / 3 / 4))
  assert found["passes"] == {
    "greedy": {
      "problems": 4,
      "unfinished": 0.25,
      "tokens": 10.0,
      "ended": {"whole": 3, "cut_off": 1},
    }
  }


def test_figures_of_a_sampled_pass():
  passes = {"sampled-4": [line("7", "7", "1", "7"), line("1", "2", "7", "1")]}
  found = F.figures(passes)
  assert found["avg_at_4"]["value"] == (0.75 + 0.25) / 2
  assert found["avg_at_4"]["se"] == pytest.approx(0.25)  # std of .75, .25 is .3536; over sqrt(2)
  assert found["pass_at_4"] == {"value": 1.0, "se": 0.0}
  assert found["majority_at_4"]["value"] == 0.5
  assert found["passes"]["sampled-4"]["tokens"] == 25.0


def test_figures_of_one_problem_have_no_error():
  assert F.mean_and_error([True]) == {"value": 1.0, "se": None}


@pytest.mark.parametrize(
  "answers, right",
  [
    (["7", "7", "1"], True),
    (["1", "1", "7"], False),
    (["7", "1", "1", "7"], True),  # equal: the first one given counts
    (["1", "7", "7", "1"], False),
    ([None, None, None, "7"], True),  # no answer, no vote
    ([None, None], False),
    (["1", "2", "3", "7", "7"], True),
    (["0.5", "7", "1/2", "7", r"\frac{1}{2}"], False),  # three ways of writing one wrong answer
    (["0.5", "7", "1/2", "7", r"\frac{1}{3}"], False),  # two against two, and 0.5 was first
  ],
)
def test_figures_majority_by_hand(answers, right):
  assert F.majority_right(samples(*answers)) is right


def test_figures_majority_compares_only_where_it_matters():
  def refuse(pairs):
    raise AssertionError("compared")

  assert F.majority_right(samples("7", "7", "1"), refuse)
  assert not F.majority_right(samples("1", "2", "3"), refuse)


@given(st.lists(st.sampled_from(["7", "1", "2", None]), min_size=1, max_size=9))
def test_figures_majority_is_the_most_common(answers):
  votes = [a for a in answers if a]
  counts = {a: votes.count(a) for a in votes}
  best = [a for a in counts if counts[a] == max(counts.values())]
  same = lambda pairs: [a == b for a, b in pairs]
  assert F.majority_right(samples(*answers), same) is (bool(best) and best[0] == "7")


def test_paper_average_by_hand():
  """Table 1, the base model: seven figures, 24.6 on average."""
  of = lambda value: {"value": value, "se": 0.0}
  benchmarks = {
    "amc23": {"avg_at_32": of(49.3), "greedy": of(50.0), "pass_at_32": of(99.0), "passes": {}},
    "aime24": {"avg_at_32": of(10.5), "greedy": of(13.3), "majority_at_32": of(99.0)},
    "aime25": {"avg_at_32": of(7.5), "greedy": of(6.7)},
    "minerva_math": {"greedy": of(34.9)},
  }
  assert F.paper_average(benchmarks) == pytest.approx(24.6, abs=0.05)
