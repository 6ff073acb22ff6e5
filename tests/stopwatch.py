"""Measures the CPU time of a call, for tests with hostile text."""

import gc
import time


class Stopwatch:
  """`with stopwatch: call()`; `last` and `worst` are seconds of processor time of this thread.

  Other threads of the test process and the garbage collector, which walks everything that earlier
  tests left in memory, would otherwise count: either has cost a call of 0.02 s a whole second.
  """

  def __init__(self):
    self.last = self.worst = 0.0

  def __enter__(self):
    gc.disable()
    self._begin = time.thread_time()
    return self

  def __exit__(self, *error):
    self.last = time.thread_time() - self._begin
    self.worst = max(self.worst, self.last)
    gc.enable()
