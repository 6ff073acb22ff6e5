#!/usr/bin/env bash
# A run on one node of eight cards: the trainer on some, vLLM servers on the others.
#
#   launch/node.sh [--dry-run] FILE[:args] [--workdir=DIR] [--config.a.b=value ...]
#   launch/node.sh configs/srl_math.py
#
# --dry-run prints what would be started, and starts nothing.
#
# Environment: SRL_TRAINER_CARDS (default 0,1,2,3), SRL_SERVER_CARDS (default 4,5,6,7; "none": one
# server on the CPU), and those of launch/servers.sh. The trainer's mesh is fsdp over its cards
# unless --config.mesh is given. launch/run.sh has SRL_TRAINER_CARDS=none: a trainer on the CPU.
#
# Ends with the trainer's exit code (launch/trainer.sh): 0 finished, 75 stopped and saved,
# 69 saved because a server was away for too long.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
if [ $# -lt 1 ] || [[ "$1" == -* ]]; then usage "${BASH_SOURCE[0]}"; fi
config="$1"
shift
trainer_cards="${SRL_TRAINER_CARDS:-0,1,2,3}"
server_cards="${SRL_SERVER_CARDS:-4,5,6,7}"
export SRL_SERVER_HOST=127.0.0.1
weights="$(flag_of config.rollout.weights_root "${SRL_WEIGHTS_ROOT:-/dev/shm}" "$@")"
export SRL_WEIGHTS_ROOT="$weights"

flags=()
if [ "$trainer_cards" = none ]; then
  trainer=(python -m srl_jax.train "--config=$config")
else
  IFS=, read -ra cards <<< "$trainer_cards"
  flags=("--config.mesh=data=1,fsdp=${#cards[@]},tensor=1")
  trainer=(env "CUDA_VISIBLE_DEVICES=$trainer_cards" "$ROOT/launch/trainer.sh" "$config")
fi
# The last of two equal flags counts: the user's follow ours, but for the addresses of the servers.
flags+=(--config.rollout.engine=vllm "--config.rollout.weights_root=$weights" "$@")
urls="$(server_urls "$server_cards" "$SRL_SERVER_HOST")"
servers=("$ROOT/launch/servers.sh" "$server_cards" "$config" "${flags[@]}")
trainer+=("${flags[@]}" "--config.rollout.servers=$urls")
if [ -n "$dry" ]; then
  quoted export "SRL_WEIGHTS_ROOT=$weights"
  quoted "${servers[@]}"
  quoted "${trainer[@]}"
  exit
fi

prepare_environment "$ROOT/requirements.txt"
output="$(mktemp -d)"
set -m # separate process groups: Ctrl-C reaches this script alone, which signals the run first
guard=() # if this script is killed with SIGKILL, the kernel signals the servers
if command -v setpriv > /dev/null; then guard=(setpriv --pdeathsig TERM); fi
"${guard[@]}" "${servers[@]}" > "$output/servers" &
fleet=$!
trap 'kill "$fleet" 2> /dev/null || true; wait "$fleet" || true; rm -r "$output"' EXIT
ready "$fleet" "$output/servers" 'all servers are ready'
"${trainer[@]}" &
run=$!
trap 'kill -INT "$run" 2> /dev/null' INT
trap 'kill -TERM "$run" 2> /dev/null' TERM HUP
await "$run"
