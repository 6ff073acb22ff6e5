"""Rewards of texts: similarity of an action to the target, and equality of final answers."""

import functools
from collections.abc import Callable

from srl_jax.rewards import other_similarities as others
from srl_jax.rewards.similarity import similarities

# Seconds of a pair for each character of both texts, at 2,000 characters (docs/rewards.md).
_seconds = lambda each: lambda pair: each * sum(map(len, pair))

# The values of config.reward.similarity. Each function maps (action, target) pairs to one number in
# [0, 1] per pair, in order. A config file may add its own function.
SIMILARITIES: dict[str, Callable[..., list[float]]] = {
  "difflib": similarities,
  "words": functools.partial(similarities, measure=others.words_similarity),
  "edit": functools.partial(similarities, measure=others.edit_similarity, seconds=_seconds(3e-8)),
  "chrf": functools.partial(similarities, measure=others.chrf_similarity, seconds=_seconds(3e-6)),
}
# These take autojunk and workers.
BUILT_IN = tuple(SIMILARITIES.values())
