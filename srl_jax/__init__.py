"""Supervised Reinforcement Learning in JAX."""
