#!/usr/bin/env bash
# A run on several Slurm nodes: the trainer on the first ones, vLLM servers on the others.
#
#   launch/slurm.sh [--dry-run] FILE[:args] [--workdir=DIR] [--config.a.b=value ...]
#   SRL_TRAINER_NODES=4 SRL_SERVER_NODES=2 launch/slurm.sh configs/srl_math.py
#
# Submits itself with sbatch; inside an allocation (salloc) it starts at once. --dry-run prints what
# would be submitted and what the job would start. This folder, the workdir and the model have to be
# on a file system that all nodes share.
#
# Environment: that of launch/cluster.sh; SRL_WEIGHTS_ROOT (default WORKDIR/weights), where the
# trainer writes weights for the servers; and those of sbatch: SBATCH_PARTITION, SBATCH_ACCOUNT,
# SBATCH_TIMELIMIT, ... The trainer's mesh is fsdp over a node's cards and data over the nodes unless
# --config.mesh is given.
#
# Ten minutes before its time limit, or when it is preempted (SIGTERM; the partition's GraceTime has
# to be long enough for a save), the run saves and the job is requeued; it continues when it starts
# again. After a node failure Slurm requeues it (--requeue). If servers were away for too long, the
# job is requeued at most 20 times. `scancel JOB` saves (within Slurm's KillWait) and ends it.
set -euo pipefail
[ -n "${SLURM_JOB_ID:-}" ] || SRL_ROOT="" # Slurm runs a copy of this script from another folder
here="${SRL_ROOT:-$(dirname "${BASH_SOURCE[0]}")/..}/launch"
# shellcheck source=launch/cluster.sh
source "$here/cluster.sh"
if [ $# -lt 1 ] || [[ "$1" == -* ]]; then usage "${BASH_SOURCE[0]}"; fi
workdir="$(workdir_of "$@")"
config="$1"
shift
check_servers_are_ours "$@"
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
    --exclusive --mem=0 # --exclusive alone may leave the default part of the memory
    --requeue --signal=B:USR1@600 --open-mode=append "--job-name=$(basename "$workdir")"
    "$ROOT/launch/slurm.sh" "$config" "$@")
  if [ -z "$dry" ]; then
    exec "${submit[@]}"
  fi
  quoted export "SRL_ROOT=$ROOT"
  quoted "${submit[@]}"
  echo "# The job, with example names of nodes:"
  mapfile -t nodes < <(seq -f 'node%g' $((trainer_count + server_count)))
else
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
fi
((${#nodes[@]} == trainer_count + server_count)) ||
  die "the allocation has ${#nodes[@]} nodes; SRL_TRAINER_NODES + SRL_SERVER_NODES is" \
    "$trainer_count + $server_count"

# The last of two equal flags counts: the user's follow ours.
flags=("--config.mesh=$(mesh_of "$trainer_count" "$cards_per_node")" --config.rollout.engine=vllm
  "--config.rollout.weights_root=$weights" "$@")
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
  quoted export "SRL_WEIGHTS_ROOT=$weights"
  for node in "${serving[@]}"; do
    quoted "${servers[@]}" "--nodelist=$node" "${serve[@]}"
  done
  quoted "${trainer[@]}"
  exit
fi

# ask STEPS: sends SIGTERM to the job's steps of that name. (srun itself would kill its step.)
# scancel's exit code is ignored: Slurm 22.05 signals a step and still prints "Invalid job id".
# shellcheck disable=SC2329  # traps call it
ask() {
  local id name
  while read -r id name; do
    [ "$name" != "$1" ] || scancel --signal=TERM "$id" || true
  done < <(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format='%i %j')
}
# finish CODE: ends the job with the code; requeues it first if it is to continue.
finish() {
  if (($1 == AWAY && ${SLURM_RESTART_COUNT:-0} >= RESTARTS)); then
    echo "error: the servers were away for too long, and the job was started again" \
      "$SLURM_RESTART_COUNT times already; see why, then give the same command again" >&2
  # Slurm requeues a job by itself only if it has to kill it. A job that scancel ended is not RUNNING.
  elif (($1 == AWAY || $1 == SAVED)) &&
    [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    echo "back into the queue, to continue"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$1"
}
# go_on: ends the job if a signal to stop was received before the trainer runs.
go_on() {
  [ -z "$limit" ] ||
    die "the time limit is near and the servers are not ready; give the job more (SBATCH_TIMELIMIT)"
  [ -z "$stopped" ] || finish "$SAVED"
}
output="$(mktemp -d)"
limit="" stopped="" fleet=()
trap 'limit=1; ask trainer' USR1   # the time limit is near
trap 'stopped=1; ask trainer' TERM # preempted or cancelled
trap 'ask servers; wait "${fleet[@]}" || true; rm -r "$output"' EXIT

# Once, on the first node, before all nodes need them.
prepare_environment "$ROOT/requirements.txt"
go_on
"$ROOT/launch/vllm_server.sh" --install-only
mkdir -p "$weights"
go_on
for node in "${serving[@]}"; do
  "${servers[@]}" "--nodelist=$node" "${serve[@]}" > "$output/$node" &
  fleet+=($!)
done
for i in "${!serving[@]}"; do
  until grep -qs '^all servers are ready' "$output/${serving[i]}"; do
    go_on # first, because a preemption ends the servers too
    kill -0 "${fleet[i]}" 2> /dev/null || die "the servers of ${serving[i]} did not start"
    sleep 1
  done
  cat "$output/${serving[i]}"
done
go_on
"${trainer[@]}" &
run=$!
code=0
await "$run" || code=$?
finish "$code"
