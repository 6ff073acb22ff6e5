"""The parts of srl_jax.plan: figures of hardware, programs compiled for it, estimates."""
