"""Similarities to compare with the paper's: of words, by edits, by character n-grams.

Each maps (action, target) to a number in [0, 1], 1 for equal texts. docs/rewards.md has their cost
and what each of them rewards wrongly.
"""

import functools
import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from srl_jax.rewards.matching import Block
from srl_jax.rewards.similarity import blocks, similarity

# A word or number, or one other character that is not white space.
_WORD = re.compile(r"\w+|[^\w\s]")


def words_similarity(action: str, target: str, *, autojunk: bool = False) -> float:
  """Returns SequenceMatcher's ratio of the words of both texts; white space does not count.

  A word is a run of letters, digits and underscores, or one other character. autojunk ignores the
  frequent words of a target of 200 or more.
  """
  return similarity(*_encoded(_WORD.findall(action), _WORD.findall(target)), autojunk=autojunk)


def word_blocks(action: str, target: str, *, autojunk: bool = False) -> list[Block]:
  """Returns the words in SequenceMatcher's matching blocks, one Block of characters each."""
  words_a, words_b = list(_WORD.finditer(action)), list(_WORD.finditer(target))
  codes = _encoded([match[0] for match in words_a], [match[0] for match in words_b])
  found = []
  for block in blocks(*codes, autojunk=autojunk):
    for n in range(block.size):
      a, b = words_a[block.i + n], words_b[block.j + n]
      found.append(Block(a.start(), b.start(), len(a[0])))
  return found


def _encoded(words_a: Sequence[str], words_b: Sequence[str]) -> tuple[str, str]:
  """Returns both lists as texts with one character for each different word.

  The ratio of their characters is that of the words. Code points from 0xE000 on leave out the
  surrogates.
  """
  codes: dict[str, str] = {}
  encode = lambda words: "".join(codes.setdefault(word, chr(0xE000 + len(codes))) for word in words)
  return encode(words_a), encode(words_b)


def edit_similarity(action: str, target: str, *, autojunk: bool = False) -> float:
  """Returns 1 - d / max(len(action), len(target)), where d is the Levenshtein distance.

  The distance counts insertions, deletions and substitutions of characters (rapidfuzz).
  """
  del autojunk  # of SequenceMatcher
  return Levenshtein.normalized_similarity(action, target)


def chrf_similarity(action: str, target: str, *, autojunk: bool = False) -> float:
  """Returns chrF2 (Popovic, 2015) as sacrebleu computes it, divided by 100.

  It is the F-score, with recall counted twice, of the n-grams of 1 to 6 characters; white space
  does not count.
  """
  del autojunk
  if action == target:  # texts without a character have no n-grams
    return 1.0
  return _chrf().sentence_score(action, [target]).score / 100


@functools.cache
def _chrf():
  # Imported where it is used: it takes half a second, and most runs do without it.
  from sacrebleu.metrics import CHRF

  return CHRF()
