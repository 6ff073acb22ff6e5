"""Every option has a config, or a reason for having none."""

from tests import unused_options


def test_unused_options_are_few_and_have_reasons():
  assert set(unused_options.unused()) == set(unused_options.KEPT)
  assert len(unused_options.KEPT) <= unused_options.LIMIT
