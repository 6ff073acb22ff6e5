"""Our update, sampler and reward beside those of other projects: `python -m benchmarks.peers`.

  __main__.py      the plan of measurements, in turns, and the table's file
  cases.py         the shapes, the tokens and the texts, the same for all
  environments.py  makes the environment of each peer, in .venv-NAME
  worker.py        both ends of the pipe between the measuring process and a peer's
  table.py         figures -> Markdown
  of_*.py          one peer each, run in that peer's environment

Each peer is a separate process. It reads orders as lines of JSON, {"case": ...} to prepare and
{"turn": k} to do one round, and answers each with one line; between orders it waits. Peers take
turns, A B A B, one at a time, so that other load on the machine affects all of them alike.
"""
