"""Rewards are functions of texts: similarities of action and target, equality of final answers."""

from collections.abc import Callable

from srl_jax.rewards.similarity import similarities

# config.reward.similarity names one: (action, target) pairs -> a number in [0, 1] for each pair, in
# order. A config file may add its own.
SIMILARITIES: dict[str, Callable[..., list[float]]] = {"difflib": similarities}
