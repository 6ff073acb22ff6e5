"""Similarities to compare with the paper's: of words, by edits, by character n-grams.

Each maps (action, target) to a number in [0, 1], 1 for equal texts. docs/rewards.md has their cost
and what each of them rewards wrongly.
"""

import functools
import re

from rapidfuzz.distance import Levenshtein

from srl_jax.rewards.similarity import similarity

# A word or number, or one other character that is not white space.
_WORD = re.compile(r"\w+|[^\w\s]")


def words_similarity(action: str, target: str, *, autojunk: bool = False) -> float:
  """Returns SequenceMatcher's ratio of the words of both texts; white space does not count.

  A word is a run of letters, digits and underscores, or one other character. autojunk ignores the
  frequent words of a target of 200 or more.
  """
  # Each different word becomes one character, so that the ratio of characters is that of words.
  # Code points from 0xE000 on leave out the surrogates.
  codes: dict[str, str] = {}
  encode = lambda text: "".join(
    codes.setdefault(word, chr(0xE000 + len(codes))) for word in _WORD.findall(text)
  )
  return similarity(encode(action), encode(target), autojunk=autojunk)


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
