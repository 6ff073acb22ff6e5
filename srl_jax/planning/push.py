"""Forecast of a push: the weights of a step to the vLLM servers, through files."""

import jax
import jax.numpy as jnp

from srl_jax.planning.topologies import Topology
from srl_jax.policy.model import ModelConfig, abstract

# Assumed rates in bytes/s. One core writes 2.7e9 to /dev/shm where it is idle (benchmarks/push.md),
# of which 2e9 are counted. A server on a GPU copies what it reads, which no card has measured.
# "shared" and "host" are those of a small cluster: 40 Gbit/s of its file system and 25 Gbit/s of a
# host, of which 80 % are counted.
RATES = {
  "copy": 8e9,  # from a device to its host
  "memory": 2e9,  # a process to its host's /dev/shm
  "load": 4e9,  # a server from /dev/shm
  "shared": 4e9,  # all hosts together to a shared file system
  "host": 2.5e9,  # one host to or from it
}
CHECK_SECONDS = 1.0  # the comparison of log-probs, and the calls of the server's routes


def forecast(config, model_config: ModelConfig, topology: Topology, hosts: int, link: float):
  """Forecast of a push, or None where the run makes none or pushes adapters only.

  Args:
    hosts: processes of the trainer.
    link: bytes/s that a device sends in a collective.

  Returns {bytes, hosts, rates, check_s, local, shared}: `local` where each host has its own servers
  and memory for the files, `shared` where all hosts and servers share a folder. Both have
  {host_bytes (which the busiest host writes), write_s, read_s (of each server), push_s}. Casts,
  gathers and copies overlap with the writing, so the slowest of them counts.
  """
  if config.rollout.engine != "vllm" or config.lora.rank:
    return None
  leaves = jax.tree.leaves(abstract(model_config))
  itemsize = jnp.dtype(config.dtype).itemsize
  total = sum(leaf.size for leaf in leaves) * itemsize
  gather_s = total * (topology.devices - 1) / topology.devices / link

  def times(host_bytes, write_s, read_s):
    write_s = max(write_s, gather_s, host_bytes / RATES["copy"])
    push_s = write_s + read_s + CHECK_SECONDS
    return {"host_bytes": host_bytes, "write_s": write_s, "read_s": read_s, "push_s": push_s}

  # The embedding is the largest tensor that one host writes (weights_folder.divided).
  largest = model_config.vocab_size * model_config.hidden_size * itemsize
  part = max(total / hosts, min(largest, total))
  shared_s = max(part / RATES["host"], total / RATES["shared"])
  return {
    "bytes": total,
    "hosts": hosts,
    "rates": dict(RATES),
    "check_s": CHECK_SECONDS,
    "local": times(total, total / RATES["memory"], total / RATES["load"]),
    "shared": times(part, shared_s, total / RATES["host"]),
  }
