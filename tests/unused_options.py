"""Prints the config keys that no file in configs/ sets: python -m tests.unused_options.

An option without a config costs code, tests and reading time. Before adding a line to KEPT, write
a config for the experiment that needs the key.
"""

import importlib
import pathlib
import re

from srl_jax.config import defaults
from srl_jax.folders import flatten

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
LIMIT = 12
KEPT = {
  "data.accept_change": "a user's consent at the command line, not part of an experiment",
  "data.solutions_per_problem": "bounds data sets with many solutions; the paper's has one each",
  "log.report": "off for tests and where one core is too many",
  "log.tensorboard": "off for tests and for machines with a slow disk",
  "log.wandb": "the user's own project",
  "optimizer.grad_norm": "the paper's value, 1.0, in every experiment",
  "optimizer.weight_decay": "0 in every experiment; the paper gives none",
  "prompt.system_file": "the user's own system prompt",
  "reward.format_penalty": "the paper's value, -1, in every experiment",
  "rollout.public_servers": "a user's consent at the command line",
  "rollout.servers": "addresses, which the launch scripts know",
  "rollout.weights_root": "a folder of the machine, which the launch scripts know",
}


def unused() -> list[str]:
  """Returns the keys that have their defaults in every config and are not assigned in any."""
  before = flatten(defaults())
  used = set()
  for path in CONFIGS.rglob("*.py"):
    name = ".".join(path.relative_to(CONFIGS.parent).with_suffix("").parts)
    made = flatten(importlib.import_module(name).get_config())
    used |= {key for key, value in made.items() if before.get(key) != value}
    # A config may assign a key for some arguments only, or assign it the default.
    used |= set(re.findall(r"\bconfig\.([\w.]+)(?= [-+*/]*=[^=])", path.read_text()))
  return sorted(before.keys() - used)


if __name__ == "__main__":
  for key in unused():
    print(f"{key:<28} {KEPT.get(key, 'NO REASON IS GIVEN')}")
