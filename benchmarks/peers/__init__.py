"""Our update, sampler and reward beside those of other projects: `python -m benchmarks.peers`.

  __main__.py      what is measured, in which turns, and where the table goes
  cases.py         the shapes, the tokens and the texts, the same for everybody
  environments.py  makes the environment of each peer, in .venv-NAME
  worker.py        both ends of the pipe between the measuring process and a peer's
  table.py         figures -> Markdown
  of_*.py          one peer each: what it does with an order; runs in that peer's environment

A peer lives in a process of its own. It gets orders as lines of JSON, {"case": ...} to get ready
and {"turn": k} to do one round, and answers each with one line; between orders it waits. So peers
take turns, A B A B, one at a time, and whatever else the machine does falls on all of them.
"""
