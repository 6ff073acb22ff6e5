"""The update and its loop. A step in reading order: rl, rollouts (dynamic_sampling, srl_jax.tasks),
batch, packing, rows, update, grpo (equation 1).
"""
