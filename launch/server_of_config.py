"""Prints the arguments of a config's vLLM server, one a line; nothing if it needs no server.

  python launch/server_of_config.py --config=FILE[:args] [--config.a.b=value ...]

Called by launch/run.sh and launch/servers.sh. A config needs a server to be started when
rollout.engine is vllm and rollout.servers is empty.
"""

import sys

from srl_jax import command_line


def main() -> None:
  file, *overrides = [word for word in sys.argv[1:] if not word.startswith("--workdir=")]
  try:
    config = command_line.load_config(file.removeprefix("--config="), overrides)
    rollout = config.rollout
  except Exception:  # srl_jax.train gets the same flags next and prints the error
    return
  if rollout.engine != "vllm" or rollout.servers:
    return
  model, flags_of_lora = config.model, []
  if config.lora.rank:
    # Imported here because they import JAX, which most configs do not need for this.
    from srl_jax.learner import start
    from srl_jax.rollout.vllm_weights import served_rank

    model = start.base_model(config)  # the server reads it from its disk and keeps it
    if not config.lora.merged_push:
      flags_of_lora = ["--enable-lora", f"--max-lora-rank={served_rank(config.lora.rank)}"]
  longest = config.data.max_prompt_tokens + max(rollout.max_tokens, config.eval.max_tokens)
  print(model, f"--dtype={config.dtype}", f"--max-model-len={longest}", *flags_of_lora, sep="\n")


if __name__ == "__main__":
  main()
