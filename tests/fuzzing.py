"""Settings of the fuzz tests: a new seed each time, which is printed, and the number of cases.

FUZZ_SEED=N repeats a run; FUZZ_CASES=1000 is for a quick look.
"""

import os
import random

import hypothesis

SEED = int(os.environ.get("FUZZ_SEED", random.randrange(1 << 32)))
CASES = int(os.environ.get("FUZZ_CASES", 20_000))


def fuzzed(cases: int = CASES):
  """Returns the decorator of a hypothesis test with so many cases; prints the seed."""
  print(f"\nFUZZ_SEED={SEED}")
  checks = list(hypothesis.HealthCheck)
  settings = hypothesis.settings(
    max_examples=cases, deadline=None, database=None, suppress_health_check=checks
  )
  return lambda test: hypothesis.seed(SEED)(settings(test))
