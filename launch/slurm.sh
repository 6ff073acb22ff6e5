#!/usr/bin/env bash
# A run on several Slurm nodes: the trainer on the first ones, vLLM servers on the others.
#
#   launch/slurm.sh [--dry-run] FILE[:args] [--workdir=DIR] [--config.a.b=value ...]
#   SRL_TRAINER_NODES=4 SRL_SERVER_NODES=2 launch/slurm.sh configs/srl_math.py --config.mesh=h100x32
#
# Submits itself with sbatch; inside an allocation (salloc) it starts at once. --dry-run prints what
# would be submitted and what the job would start. This folder, the workdir and the model have to be
# on a file system that all nodes share.
#
# Environment: SRL_TRAINER_NODES, SRL_SERVER_NODES (default 1 each), SRL_CARDS_PER_NODE (8; 0: no
# --gpus-per-node), SRL_CARDS_PER_SERVER, SRL_VLLM_PORT, SRL_VLLM_FLAGS; SRL_WEIGHTS_ROOT (default
# WORKDIR/weights), where the trainer leaves weights for the servers; and sbatch's own:
# SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, ...
#
# Ten minutes before its time limit, or when it is preempted (SIGTERM; the partition's GraceTime has
# to be long enough for a save), the run saves and the job goes back into the queue, where it
# continues. After a node failure Slurm puts it back (--requeue). `scancel JOB` saves, too (within
# Slurm's KillWait), and ends it.
set -euo pipefail
[ -n "${SLURM_JOB_ID:-}" ] || SRL_ROOT="" # Slurm runs a copy of this script from another folder
here="${SRL_ROOT:-$(dirname "${BASH_SOURCE[0]}")/..}/launch"
# shellcheck source=launch/cluster.sh
source "$here/cluster.sh"
dry=""
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
if [ $# -lt 1 ] || [[ "$1" == -* ]]; then usage "${BASH_SOURCE[0]}"; fi
trainer_count="${SRL_TRAINER_NODES:-1}" server_count="${SRL_SERVER_NODES:-1}"
workdir="$(workdir_of "$@")"
config="$1"
shift
weights="$(flag_of config.rollout.weights_root "${SRL_WEIGHTS_ROOT:-$workdir/weights}" "$@")"
cards="$(card_list "$cards_per_node")"
gpus=() devices=()
if ((cards_per_node)); then
  gpus=("--gpus-per-node=$cards_per_node")
  devices=(env "JAX_LOCAL_DEVICE_IDS=$cards") # one process a node; JAX takes a card each under Slurm
fi

if [ -z "${SLURM_JOB_ID:-}" ]; then
  export SRL_ROOT="$ROOT"
  submit=(sbatch "--nodes=$((trainer_count + server_count))" --ntasks-per-node=1 "${gpus[@]}"
    --exclusive --requeue --signal=B:USR1@600 --open-mode=append "--job-name=$(basename "$workdir")"
    "$ROOT/launch/slurm.sh" "$config" "$@")
  if [ -z "$dry" ]; then
    exec "${submit[@]}"
  fi
  echo "export SRL_ROOT=$(quoted "$ROOT")"
  quoted "${submit[@]}"
  echo "# and the job, were its nodes named so:"
  mapfile -t nodes < <(seq -f 'node%g' $((trainer_count + server_count)))
else
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
fi
((${#nodes[@]} == trainer_count + server_count)) ||
  die "the allocation has ${#nodes[@]} nodes; SRL_TRAINER_NODES + SRL_SERVER_NODES is" \
    "$trainer_count + $server_count"

flags=(--config.rollout.engine=vllm "--config.rollout.weights_root=$weights" "$@")
serving=("${nodes[@]:trainer_count}")
urls="$(server_urls "$cards" "${serving[@]}")"
# One step for each server node, so that one that fails leaves the others running.
servers=(srun --job-name=servers --nodes=1 --ntasks=1 "${gpus[@]}")
serve=("$ROOT/launch/servers.sh" "$cards" "$config" "${flags[@]}")
trainer=(srun --job-name=trainer "--nodes=$trainer_count" "--ntasks=$trainer_count"
  "--nodelist=$(IFS=, && echo "${nodes[*]:0:trainer_count}")" "${gpus[@]}"
  --kill-on-bad-exit=0 --wait=120 # seconds for the other processes to end after the first
  "${devices[@]}" "$ROOT/launch/trainer.sh" "$config" "${flags[@]}" "--config.rollout.servers=$urls")
export SRL_WEIGHTS_ROOT="$weights"
if [ -n "$dry" ]; then
  echo "export SRL_WEIGHTS_ROOT=$(quoted "$weights")"
  for node in "${serving[@]}"; do
    quoted "${servers[@]}" "--nodelist=$node" "${serve[@]}"
  done
  quoted "${trainer[@]}"
  exit
fi

# Once, on the first node, before all nodes want them.
prepare_environment "$ROOT/requirements.txt"
"$ROOT/launch/vllm_server.sh" --install-only
mkdir -p "$weights"

# ask STEPS: SIGTERM for the job's steps of that name. (srun, when it gets one, kills its step.)
# scancel's answer tells nothing: Slurm 22.05 signals a step and still says "Invalid job id".
# shellcheck disable=SC2329  # traps call it
ask() {
  local id name
  while read -r id name; do
    [ "$name" != "$1" ] || scancel --signal=TERM "$id" || true
  done < <(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format='%i %j')
}
output="$(mktemp -d)"
limit="" fleet=()
trap 'limit=1; ask trainer' USR1 # the time limit is near
trap 'ask trainer' TERM          # preempted or cancelled
trap 'ask servers; wait "${fleet[@]}" || true; rm -r "$output"' EXIT
for node in "${serving[@]}"; do
  "${servers[@]}" "--nodelist=$node" "${serve[@]}" > "$output/$node" &
  fleet+=($!)
done
for i in "${!serving[@]}"; do
  until grep -qs '^all servers are ready' "$output/${serving[i]}"; do
    kill -0 "${fleet[i]}" 2> /dev/null || die "the servers of ${serving[i]} did not start"
    [ -z "$limit" ] || die "the time limit came before the servers were ready"
    sleep 1
  done
  cat "$output/${serving[i]}"
done
"${trainer[@]}" &
run=$!
while kill -0 "$run" 2> /dev/null; do
  wait "$run" || true # a signal ends the wait, not the run
done
code=0
wait "$run" || code=$?
# Slurm itself puts a job back only if it has to kill it. What scancel ended is no longer running.
state="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)"
if ((code == SAVED)) && [ "$state" = RUNNING ]; then
  echo "saved; back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
