#!/usr/bin/env bash
# Trains a config; sets up the environment first if it is missing.
#
#   launch/run.sh FILE[:args] [--workdir=DIR] [--config.a.b=value ...]
#   launch/run.sh configs/quickstart.py
#
# With rollout.engine=vllm and no rollout.servers, launch/node.sh starts a vLLM server for the run
# (SRL_VLLM_FLAGS, SRL_VLLM_PORT) and stops it after, where the trainer does not use NVIDIA cards.
#
# The same command again continues a run that was interrupted.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# -lt 1 ] || [[ "$1" == -* ]]; then usage "${BASH_SOURCE[0]}"; fi
prepare_environment "$ROOT/requirements.txt"
config="$1"
shift

mapfile -t server < <(python "$ROOT/launch/server_of_config.py" --config="$config" "$@")
if [ "${#server[@]}" -eq 0 ]; then
  exec python -m srl_jax.train --config="$config" "$@"
fi
# JAX reserves memory on every card that it sees, so a server beside it would not start.
if [ "$(jax_extra)" = cuda12 ] && [ "${JAX_PLATFORMS:-}" != cpu ]; then
  die "rollout.engine=vllm: the trainer takes all GPUs of this machine and leaves none to the vLLM" \
    "server; use launch/node.sh $config, which divides the GPUs, or name running servers with" \
    "--config.rollout.servers=URL, or leave rollout.engine at builtin"
fi
SRL_TRAINER_CARDS=none SRL_SERVER_CARDS=none exec "$ROOT/launch/node.sh" "$config" "$@"
