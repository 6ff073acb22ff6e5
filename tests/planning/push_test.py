"""The forecast of a push, by hand-computed figures."""

import pytest

from srl_jax import config as common
from srl_jax.planning import push
from srl_jax.planning.models import architecture
from srl_jax.planning.topologies import TOPOLOGIES

QWEN = architecture("Qwen/Qwen2.5-7B-Instruct", "bfloat16")
BYTES = 2 * 7_615_616_512


def config(engine="vllm", rank=0):
  found = common.defaults()
  found.rollout.engine, found.lora.rank, found.dtype = engine, rank, "bfloat16"
  return found


@pytest.mark.parametrize("name, hosts", [("v5p-128", 16), ("v6e-256", 64)])
def test_push_to_a_pods_servers_takes_less_than_15_seconds(name, hosts):
  found = push.forecast(config(), QWEN, TOPOLOGIES[name], hosts, 144e9)
  assert found["bytes"] == BYTES
  local, shared = found["local"], found["shared"]
  rates = found["rates"]
  assert local["host_bytes"] == BYTES and local["write_s"] == BYTES / rates["memory"]
  # Once in all: the sum of what the hosts write does not grow with their number.
  assert shared["write_s"] == BYTES / rates["shared"]
  assert shared["host_bytes"] == max(BYTES / hosts, 2 * 152064 * 3584)
  for part in (local, shared):
    assert part["push_s"] == pytest.approx(part["write_s"] + part["read_s"] + found["check_s"])
    assert part["push_s"] < 15


def test_push_is_limited_by_the_slowest_part(monkeypatch):
  slow_link = push.forecast(config(), QWEN, TOPOLOGIES["h100x8"], 1, 1e9)
  assert slow_link["local"]["write_s"] == pytest.approx(BYTES * 7 / 8 / 1e9)
  monkeypatch.setitem(push.RATES, "host", 1e9)
  few = push.forecast(config(), QWEN, TOPOLOGIES["v5p-128"], 2, 144e9)
  assert few["shared"]["write_s"] == BYTES / 2 / 1e9  # one host's link, not the file system


def test_push_is_forecast_for_whole_weights_and_servers_only():
  assert push.forecast(config("builtin"), QWEN, TOPOLOGIES["h100x8"], 1, 1e9) is None
  assert push.forecast(config(rank=16), QWEN, TOPOLOGIES["h100x8"], 1, 1e9) is None
