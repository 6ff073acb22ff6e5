"""Rewards of texts: similarity of an action to the target, and equality of final answers."""

from collections.abc import Callable

from srl_jax.rewards.similarity import similarities

# The values of config.reward.similarity. Each function maps (action, target) pairs to one number in
# [0, 1] per pair, in order. A config file may add its own function.
SIMILARITIES: dict[str, Callable[..., list[float]]] = {"difflib": similarities}
