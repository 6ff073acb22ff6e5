"""Update and sampler on one card, beside torch: `python -m benchmarks.gpu`."""
