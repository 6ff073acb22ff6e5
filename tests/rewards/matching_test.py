"""The matcher for long texts: equal to the standard library, and fast in the worst cases."""

import difflib
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srl_jax.rewards.matching import matched_characters, matching_blocks
from srl_jax.rewards.similarity import similarity
from tests.stopwatch import Stopwatch

# Repeats, runs of one letter, periods and random text.
NOISE = st.text("ab \n", max_size=120)
ANY_TEXT = st.text(st.characters(), max_size=40)
PERIODIC = st.builds(
  lambda part, n: part * n, st.text("ab ", min_size=1, max_size=5), st.integers(0, 40)
)
RUNS = st.lists(
  st.builds(lambda c, n: c * n, st.sampled_from("ab "), st.integers(1, 12)), max_size=25
)
PIECES = st.lists(
  st.one_of(
    NOISE, ANY_TEXT, PERIODIC, RUNS.map("".join), st.sampled_from(["def f(x):\n  ", "xy" * 9])
  ),
  max_size=4,
)
TEXT = PIECES.map("".join)
# From 200 characters on autojunk ignores frequent letters; this alphabet also has rare ones.
LONG = st.builds(
  lambda text, seed: text + "".join(random.Random(seed).choices("abcdefghijklmnopqrst \n", k=260)),
  TEXT,
  st.integers(0, 1000),
)


def reference(a, b, autojunk):
  blocks = difflib.SequenceMatcher(None, a, b, autojunk=autojunk).get_matching_blocks()
  return [tuple(block) for block in blocks[:-1]]  # the last one is always empty


@settings(max_examples=400, deadline=None)
@given(a=st.one_of(TEXT, LONG), b=st.one_of(TEXT, LONG), autojunk=st.booleans())
@example(a="tide", b="diet", autojunk=False)
@example(a="a" * 300, b="a" * 200, autojunk=True)
@example(a="ab" * 100, b="ab" * 120, autojunk=True)  # nothing but frequent letters, extended
@example(a="\ud800x\udfff", b="x\ud800", autojunk=False)
@example(a="", b="a", autojunk=False)
def test_matches_equal_the_standard_librarys(a, b, autojunk):
  blocks = reference(a, b, autojunk)
  assert matching_blocks(a, b, autojunk=autojunk) == blocks
  assert matched_characters(a, b, autojunk=autojunk) == sum(size for _, _, size in blocks)


@settings(max_examples=150, deadline=None)
@given(a=LONG, b=LONG, at=st.integers(0, 200), autojunk=st.booleans())
def test_matches_of_a_text_with_a_part_replaced(a, b, at, autojunk):
  changed = a[:at] + b[:50] + a[at + 30 :]
  assert matching_blocks(a, changed, autojunk=autojunk) == reference(a, changed, autojunk)


def code(length):
  """Returns a function call that writes a file: words, punctuation, deep indentation."""
  rng = random.Random(0)
  lines = []
  while sum(map(len, lines)) < length:
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz_", k=rng.randrange(2, 10)))]
    words *= rng.randrange(1, 4)
    lines.append(" " * rng.choice([0, 4, 8, 12, 16, 20]) + " ".join(words) + "\n")
  return 'create(file_text="' + "".join(lines)[:length] + '")'


CODE = code(11_000)
# Blocks of every length from 148 down to 1: the most distinct lengths in 11,000 characters.
STAIRS = "".join(" " * n + "x" for n in range(148, 0, -1))
# 2,048 tokens: up to 128 characters a token where one letter is repeated, about 4 of other text.
DEGENERATE = {
  "spaces": (" " * 131_072, CODE),
  "underscores": ("_" * 131_072, CODE),
  "spaces against stairs": (" " * 131_072, STAIRS),
  "long runs against stairs": ((" " * 127 + "x") * 1024, STAIRS),
  "spaces against single spaces": (" " * 131_072, "xy " * 3700),
  "one letter": ("e" * 9000, CODE),
  "two letters": ("ab" * 8192, CODE),
  "a line again and again": ("        return x\n" * 2000, CODE),
  "random letters, two of them": (
    "".join(random.Random(1).choices("ab", k=131_072)),
    "ab ba" * 2200,
  ),
}


@pytest.mark.parametrize("autojunk", [False, True])
@pytest.mark.parametrize("name", DEGENERATE)
def test_matches_is_bounded_on_degenerate_texts(name, autojunk):
  """Processor time, three times what was measured at worst (0.7 s); cydifflib takes minutes."""
  with Stopwatch() as stopwatch:
    similarity(*DEGENERATE[name], autojunk=autojunk)
  if stopwatch.last >= 2:
    # On a busy machine each second of processor time does less. Random letters take 0.35 s of a
    # quiet one, so that 2 s there are this limit here.
    with Stopwatch() as reference:
      similarity(*DEGENERATE["random letters, two of them"])
    assert stopwatch.last < 2 / 0.35 * reference.last


@pytest.mark.parametrize("autojunk", [False, True])
@pytest.mark.parametrize("name", DEGENERATE)
def test_matches_of_degenerate_texts_equal_the_standard_librarys(name, autojunk):
  """The same texts, short enough for it."""
  a, b = (text[:700] for text in DEGENERATE[name])
  blocks = reference(a, b, autojunk)
  assert matching_blocks(a, b, autojunk=autojunk) == blocks
  assert matched_characters(a, b, autojunk=autojunk) == sum(size for _, _, size in blocks)


def test_matches_of_long_texts_equal_the_standard_librarys():
  action = CODE[:700] + CODE[900:1500].replace("e", "i") + CODE[1400:2400]
  for autojunk in (False, True):
    expected = difflib.SequenceMatcher(None, action, CODE[:2500], autojunk=autojunk).ratio()
    assert similarity(action, CODE[:2500], autojunk=autojunk) == expected
