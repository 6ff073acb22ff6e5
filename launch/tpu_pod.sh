#!/usr/bin/env bash
# A run on a TPU pod slice: copies this folder to all workers and starts one process on each.
#
#   SRL_TPU_NAME=NAME launch/tpu_pod.sh [--dry-run] FILE[:args] --workdir=/SHARED/DIR [flags]
#   SRL_TPU_NAME=NAME launch/tpu_pod.sh --follow     shows the first worker's output till it ends
#   SRL_TPU_NAME=NAME launch/tpu_pod.sh --stop       the run saves and ends on all workers
#
#   SRL_TPU_NAME=pod launch/tpu_pod.sh configs/srl_math.py --config.mesh=v5p-128 --workdir=/mnt/r/srl
#
# The run continues when this command is interrupted. The same command continues a run that was
# stopped, also on a new pod after a preemption. --dry-run prints the commands. The workdir, and the
# model if it is a folder, have to be on a file system that all workers mount. gcloud reads the
# project and the zone from CLOUDSDK_CORE_PROJECT and CLOUDSDK_COMPUTE_ZONE. vLLM servers run
# elsewhere: --config.rollout.engine=vllm --config.rollout.servers=URL,URL. PYTHON, HF_HOME,
# HF_TOKEN, WANDB_API_KEY and VLLM_API_KEY are passed on to the workers if they are set here.
#
# --follow ends with the exit code of the first worker's launch/trainer.sh: 0 finished, 75 and 69
# saved, the same command continues it.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
if [ $# -lt 1 ]; then usage "${BASH_SOURCE[0]}"; fi
pod="${SRL_TPU_NAME:-}"
[ -n "$pod" ] || die "SRL_TPU_NAME: name the TPU"

# on_worker WHICH LINE: runs a line of shell on worker WHICH, or on all of them.
on_worker() {
  run gcloud compute tpus tpu-vm ssh "$pod" "--worker=$1" "--command=$2"
}

# passed_on: NAME=VALUE of the variables that the workers get; a dry run shows no secrets.
passed_on() {
  local name
  for name in PYTHON HF_HOME HF_TOKEN WANDB_API_KEY VLLM_API_KEY; do
    if [ -z "${!name:-}" ]; then
      continue
    elif [ -n "$dry" ] && [[ "$name" == *_TOKEN || "$name" == *_KEY ]]; then
      echo -n "$name=*** "
    else
      echo -n "$name=$(quoted "${!name}") "
    fi
  done
}

case "$1" in
  --follow) on_worker 0 'srl_jax/launch/detached.sh --follow' && exit ;;
  --stop) on_worker all 'srl_jax/launch/detached.sh --stop' && exit ;;
  -*) usage "${BASH_SOURCE[0]}" ;;
esac
[[ "$(flag_of workdir "" "$@")" == /* ]] ||
  die "--workdir=DIR: give a folder that all workers mount, from the root"
config="${1#"$ROOT/"}"
[[ "$config" != /* && "$config" != ../* && -e "$ROOT/${config%%:*}" ]] ||
  die "${1%%:*}: not in $ROOT, which alone is copied to the workers; put the config into configs/"
shift

# Includes files that are not committed, excludes those that git ignores.
archive="$ROOT/.cache/srl_jax.tar.gz"
if [ -z "$dry" ]; then
  mkdir -p "$ROOT/.cache"
  git -C "$ROOT" ls-files -z --cached --others --exclude-standard |
    tar -C "$ROOT" --null --ignore-failed-read -czf "$archive" -T -
fi
# JAX reads the rest from the TPU's metadata; without an address it assumes a single process.
describe=(gcloud compute tpus tpu-vm describe "$pod" "--format=value(networkEndpoints[0].ipAddress)")
if [ -n "$dry" ]; then
  quoted "${describe[@]}"
  first=FIRST_WORKER
else
  first="$("${describe[@]}")"
fi
run gcloud compute tpus tpu-vm scp "$archive" "$pod:srl_jax.tar.gz" --worker=all
# Secrets are assignments before the command, not arguments of env, which every user of the worker
# would see in the process list for the whole run.
on_worker all "mkdir -p srl_jax && tar -xzf srl_jax.tar.gz -C srl_jax && \
$(passed_on)srl_jax/launch/detached.sh env JAX_COORDINATOR_ADDRESS=$first:8476 launch/trainer.sh \
$(quoted "$config" "$@")"
on_worker 0 'srl_jax/launch/detached.sh --follow'
