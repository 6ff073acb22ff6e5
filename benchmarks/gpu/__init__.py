"""`python -m benchmarks.gpu`; __main__.py has the usage.

cases.py  shapes, tokens and sections
ours.py   our update and the built-in sampler
decoding.py  the sampler with long limits
torch.py  the same update in torch and transformers
profile.py  the update's time by kind of kernel
table.py  results -> Markdown
"""
