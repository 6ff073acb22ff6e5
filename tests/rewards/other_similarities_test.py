"""The similarities beside the paper's, against their libraries and their definitions."""

import difflib
import random
import re

import pytest

from srl_jax.rewards import BUILT_IN, SIMILARITIES
from srl_jax.rewards.other_similarities import word_blocks
from srl_jax.rewards.similarity import similarities


def of(name, action, target):
  return SIMILARITIES[name]([(action, target)])[0]


def random_texts(count):
  rng = random.Random(0)
  letters = "ab x=+12.\n é步\ud800"
  return ["".join(rng.choices(letters, k=rng.randrange(60))) for _ in range(count)]


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_are_in_the_unit_interval_and_1_for_equal_texts(name):
  texts = [*random_texts(200), "", " ", "a", "12 = 3 * 4"]
  assert all(of(name, text, text) == pytest.approx(1) for text in texts)
  pairs = list(zip(texts, reversed(texts)))
  assert all(0 <= value <= 1 for value in SIMILARITIES[name](pairs))
  assert of(name, "abc", "xyz") == of(name, "", "abc") == of(name, "abc", "") == 0


def test_words_equals_the_standard_library_on_words():
  texts = random_texts(200)
  for action, target in zip(texts, texts[1:]):
    words = [re.findall(r"\w+|[^\w\s]", text) for text in (action, target)]
    expected = difflib.SequenceMatcher(None, *words, autojunk=False).ratio()
    assert of("words", action, target) == pytest.approx(expected)


@pytest.mark.parametrize(
  "name, action, target, value",
  [
    # Of the words 3 + 4 = 7 . four are in the target, in order: 2 * 5 / 12.
    ("words", "3 + 4 = 7.", "3 + 4 = 8.", 10 / 12),
    ("words", "a  b\nc", "a b c", 1.0),
    ("edit", "kitten", "sitting", 1 - 3 / 7),
    ("edit", "abcd", "cdab", 0.0),
    ("difflib", "abcd", "cdab", 0.5),
    ("chrf", "a b c", "abc", 1.0),
  ],
)
def test_similarity_of_known_pairs(name, action, target, value):
  assert of(name, action, target) == pytest.approx(value)


def test_chrf_counts_recall_twice():
  """F2 of 1-grams: precision 1, recall 1/2 gives 5 P R / (4 P + R) = 5/9."""
  assert of("chrf", "a", "ab") == pytest.approx(5 / 9)
  assert of("chrf", "a", "ab") < of("chrf", "ab", "a")


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_with_workers_are_the_same(name):
  texts = [text * 200 for text in random_texts(24)]
  pairs = list(zip(texts, texts[1:]))
  assert SIMILARITIES[name](pairs, workers=2) == SIMILARITIES[name](pairs)
  assert SIMILARITIES["difflib"] is similarities and len(BUILT_IN) == len(SIMILARITIES)


def test_word_blocks_are_the_words_that_the_ratio_counts():
  action, target = "so  3 + 4 = 7.", "so 3 + 4\n= 8."
  found = word_blocks(action, target)
  words = [action[block.i : block.i + block.size] for block in found]
  assert words == ["so", "3", "+", "4", "=", "."]
  assert words == [target[block.j : block.j + block.size] for block in found]
  assert of("words", action, target) == pytest.approx(2 * len(words) / 14)
