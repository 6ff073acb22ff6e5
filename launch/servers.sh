#!/usr/bin/env bash
# The vLLM servers of a run on this machine: one for each of CARDS.
#
#   launch/servers.sh CARDS FILE[:args] [--config.a.b=value ...]
#   launch/servers.sh 4,5,6,7 configs/srl_math.py --config.rollout.engine=vllm
#
# CARDS are numbers as in CUDA_VISIBLE_DEVICES, or "none": one server on the CPU. The model, its
# type and its lengths are those of the config. Prints "all servers are ready" when they are. Ctrl-C
# or SIGTERM ends all. If one dies, the others keep running and the trainer continues with those.
#
# Environment: SRL_SERVER_HOST, the address to listen on (default: the node's name under Slurm, else
# 127.0.0.1); SRL_VLLM_PORT, SRL_VLLM_FLAGS (launch/cluster.sh); SRL_WEIGHTS_ROOT and others of
# launch/vllm_server.sh.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
if [ -n "$dry" ] || [ $# -lt 2 ] || [[ "$1" == -* || "$2" == -* ]]; then usage "${BASH_SOURCE[0]}"; fi
IFS=, read -ra cards <<< "$1"
config="$2"
shift 2
host="${SRL_SERVER_HOST:-${SLURMD_NODENAME:-127.0.0.1}}"

prepare_environment "$ROOT/requirements.txt" >&2
mapfile -t model < <(python "$ROOT/launch/server_of_config.py" --config="$config" "$@")
((${#model[@]})) ||
  die "$config needs no servers: rollout.engine has to be vllm and rollout.servers empty"
# shellcheck disable=SC2206
model+=(${SRL_VLLM_FLAGS:-})
"$ROOT/launch/vllm_server.sh" --install-only # once, before all of them need it
output="$(mktemp -d)"
pids=() own=()
set -m # separate process groups: Ctrl-C reaches this script alone, which ends them all
for i in "${!cards[@]}"; do
  [ "${cards[i]}" = none ] || own=("CUDA_VISIBLE_DEVICES=${cards[i]}")
  env "${own[@]}" "$ROOT/launch/vllm_server.sh" "${model[@]}" \
    --host="$host" --port=$((first_port + i)) > "$output/$i" &
  pids+=($!)
done
set +m
# shellcheck disable=SC2329  # the trap calls it
stop() {
  trap '' INT TERM
  kill -TERM "${pids[@]}" 2> /dev/null || true
  wait "${pids[@]}" || true
  rm -r "$output"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for i in "${!cards[@]}"; do ready "${pids[i]}" "$output/$i" ready:; done
echo "all servers are ready"
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "$code"
