"""The groups of pytest-xdist (conftest.py), by which the tests of a file share a worker."""

import pytest


def test_groups_are_in_effect(request):
  """Else each worker starts all servers. pytest-xdist 3.8 ignores groups under pytest 9.2."""
  if not getattr(request.config.option, "loadgroup", False):
    pytest.skip("not a worker of --dist=loadgroup")
  assert request.node.nodeid.endswith("@worker_groups_test.py")
