"""benchmarks/similarities.py: what each change does to a step."""

import random

import pytest

from benchmarks import similarities

STEP = r"2. Therefore we compute \( x = 12 \) and \( (a - b) \cdot y \), so y has 7 parts."


@pytest.mark.parametrize("name", similarities.CHANGES)
def test_changes_keep_most_of_the_step(name):
  for change in similarities.CHANGES[name]:
    for seed in range(20):
      new = change(STEP, random.Random(seed))
      assert new and new != STEP
      assert abs(len(new) - len(STEP)) < 12


@pytest.mark.parametrize(
  "change, step, new",
  [
    ("number_kept", "so 7 parts", "so 7.0 parts"),
    ("name_kept", "Therefore we compute it", "Hence we calculate it"),
    ("order_kept", r"thus \( x = 12 \)", r"thus \( 12 = x \)"),
    ("order_kept", r"thus \( x < 12 \)", None),
    ("order_broken", r"so (a - b)", "so (b - a)"),
    ("order_broken", r"\( \frac{1}{3} \)", r"\( \frac{3}{1} \)"),
    ("name_broken", r"\( x \)", None),
    ("number_broken", "x_{2} and 1.5", None),
  ],
)
def test_change_of_a_known_step(change, step, new):
  assert getattr(similarities, change)(step, random.Random(0)) == new


def test_broken_numbers_and_names_differ_in_one_place():
  for seed in range(50):
    number = similarities.number_broken("so 7 parts", random.Random(seed))
    assert 7 < int(number.split()[1]) < 17
    name = similarities.name_broken(r"\( x + y \)", random.Random(seed))
    assert name in (r"\( x + x \)", r"\( y + y \)")
