"""What srl_jax.plan is made of: hardware in figures, programs compiled for it, estimates."""
