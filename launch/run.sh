#!/usr/bin/env bash
# Trains a config; sets up the environment first if it is missing.
#
#   launch/run.sh FILE[:args] [--workdir=DIR] [--config.a.b=value ...]
#   launch/run.sh configs/quickstart.py
#
# With rollout.engine=vllm and no rollout.servers it starts a vLLM server for the run (SRL_VLLM_FLAGS,
# SRL_VLLM_PORT) and stops it after; where the trainer uses NVIDIA cards, launch/node.sh does that.
#
# The same command again continues a run that was interrupted.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
if [ -n "$dry" ] || [ $# -lt 1 ] || [[ "$1" == -* ]]; then usage "${BASH_SOURCE[0]}"; fi
prepare_environment "$ROOT/requirements.txt"
config="$1"
shift

# rollout.engine=vllm without addresses: a server for this run, on this machine, that ends with it.
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
output="$(mktemp -d)"
set -m # separate process groups: Ctrl-C reaches this script alone, which signals the run first
guard=() # if this script is killed with SIGKILL, the kernel signals the server
if command -v setpriv > /dev/null; then guard=(setpriv --pdeathsig TERM); fi
# shellcheck disable=SC2086
"${guard[@]}" "$ROOT/launch/vllm_server.sh" "${server[@]}" --port="$first_port" \
  ${SRL_VLLM_FLAGS:-} > "$output/ready" &
pid=$!
trap 'kill "$pid" 2> /dev/null || true; wait "$pid" || true; rm -rf "$output"' EXIT
ready "$pid" "$output/ready" ready:
python -m srl_jax.train --config="$config" "$@" \
  --config.rollout.servers="http://127.0.0.1:$first_port" &
run=$!
trap 'kill -INT "$run" 2> /dev/null || true' INT
trap 'kill -TERM "$run" 2> /dev/null || true' TERM HUP
await "$run"
