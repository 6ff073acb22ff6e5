"""The page of a run: reads workdirs, computes what is shown, and writes one HTML file. No JAX."""
