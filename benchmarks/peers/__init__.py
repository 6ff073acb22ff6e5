"""Our update, sampler and reward beside those of other projects: `python -m benchmarks.peers`.

__main__.py      the plan of measurements, in turns, and the page's file
cases.py         the shapes, the tokens and the texts, the same for all
environments.py  makes the environment of each peer, in .venv-NAME
worker.py        both ends of the pipe between the measuring process and a peer's
table.py         figures -> Markdown
of_*.py          one peer each, run in that peer's environment
"""
