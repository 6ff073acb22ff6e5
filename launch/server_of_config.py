"""Prints how to start the vLLM server of a config: its model, then a flag a line; nothing if none.

  python launch/server_of_config.py --config=FILE[:args] [--config.a.b=value ...]

launch/run.sh asks it. A config needs a server of its own when rollout.engine is vllm and
rollout.servers is empty.
"""

import sys

from absl import flags
from ml_collections import config_flags

config_flags.DEFINE_config_file("config", None, "as srl_jax.train")
flags.DEFINE_string("workdir", None, "as srl_jax.train")


def main() -> None:
  try:
    flags.FLAGS(sys.argv)
    config = flags.FLAGS.config
    rollout = config.rollout
  except Exception:  # srl_jax.train is given the same flags next, and says what is wrong with them
    return
  if rollout.engine != "vllm" or rollout.servers:
    return
  longest = config.data.max_prompt_tokens + max(rollout.max_tokens, config.eval.max_tokens)
  print(config.model)
  print(f"--dtype={config.dtype}")
  print(f"--max-model-len={longest}")


if __name__ == "__main__":
  main()
