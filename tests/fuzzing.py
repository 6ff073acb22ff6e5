"""Settings of the fuzz tests: a new seed each time, which is printed, and the number of cases.

FUZZ_SEED=N repeats a run. FUZZ_CASES=20000 is what each test was run with once; by default there
are fewer, because under coverage 20,000 headers alone take minutes.
"""

import os
import random

import hypothesis

SEED = int(os.environ.get("FUZZ_SEED", random.randrange(1 << 32)))
CASES = int(os.environ.get("FUZZ_CASES", 4_000))


def fuzzed(cases: int = CASES):
  """Returns the decorator of a hypothesis test with so many cases; prints the seed."""
  print(f"\nFUZZ_SEED={SEED}")
  checks = list(hypothesis.HealthCheck)
  settings = hypothesis.settings(
    max_examples=cases, deadline=None, database=None, suppress_health_check=checks
  )
  return lambda test: hypothesis.seed(SEED)(settings(test))
