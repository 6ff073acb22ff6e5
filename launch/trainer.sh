#!/usr/bin/env bash
# One process of a run's trainer, for schedulers: its exit code shows whether to start it again.
#
#   launch/trainer.sh FILE[:args] [--workdir=DIR] [--config.a.b=value ...]
#   launch/trainer.sh --install-only     makes .venv and ends
#
# Exit code 0: the run is finished. 75: it received SIGTERM, saved and is not finished; the same
# command continues it. 69: the same, because a rollout server was away for too long; start it
# again, but a limited number of times. 2: bad input. Others: it crashed.
#
# Of several processes (JAX_PROCESS_ID, SLURM_PROCID) only the first exits with 75: it writes the
# summary by which a finished run is recognised.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
if [ "${1:-}" = --install-only ]; then
  prepare_environment "$ROOT/requirements.txt"
  exit
fi
if [ -n "$dry" ] || [ $# -lt 1 ] || [[ "$1" == -* ]]; then usage "${BASH_SOURCE[0]}"; fi
summary="$(workdir_of "$@")/summary.json"
prepare_environment "$ROOT/requirements.txt"
config="$1"
shift

asked=""
python -m srl_jax.train --config="$config" "$@" &
run=$!
trap 'asked=1; kill -TERM "$run" 2> /dev/null' TERM INT
trap '' HUP # a lost terminal does not end a run
code=0
await "$run" || code=$?

# 128 + 15: SIGTERM before the handler was installed. 75: srl_jax.train's code for a server that was
# away for too long.
if ((code == 128 + 15 || code == SAVED)) && [ -n "$asked" ]; then exit "$SAVED"; fi
((code != SAVED)) || exit "$AWAY"
((code == 0)) || exit "$code"
# A run that continues beyond its earlier end has removed the earlier summary.
if [ "${JAX_PROCESS_ID:-${SLURM_PROCID:-0}}" = 0 ] && [ ! -e "$summary" ]; then exit "$SAVED"; fi
