"""Our update and sampler beside those of other projects: `python -m benchmarks.peers`."""
