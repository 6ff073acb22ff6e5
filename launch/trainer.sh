#!/usr/bin/env bash
# One process of a run's trainer, as schedulers want it: its exit code tells whether to start again.
#
#   launch/trainer.sh FILE[:args] [--workdir=DIR] [--config.a.b=value ...]
#   launch/trainer.sh --install-only     makes .venv and ends
#
# Exit code 0: the run is finished. 75: it was asked to stop (SIGTERM), saved and is not finished;
# the same command continues it. 69: the same, because a rollout server was away for too long; start
# it again, but not for ever. 2: bad input. Others: it crashed.
#
# Of several processes (JAX_PROCESS_ID, SLURM_PROCID) the first alone tells 75: it writes the
# summary that a finished run ends with.
set -euo pipefail
# shellcheck source=launch/cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
if [ "${1:-}" = --install-only ]; then
  prepare_environment "$ROOT/requirements.txt"
  exit
fi
if [ $# -lt 1 ] || [[ "$1" == -* ]]; then usage "${BASH_SOURCE[0]}"; fi
summary="$(workdir_of "$@")/summary.json"
prepare_environment "$ROOT/requirements.txt"
config="$1"
shift

asked=""
python -m srl_jax.train --config="$config" "$@" &
run=$!
trap 'asked=1; kill -TERM "$run" 2> /dev/null' TERM INT
trap '' HUP # a lost terminal does not end a run
while kill -0 "$run" 2> /dev/null; do
  wait "$run" || true # a signal ends the wait, not the run
done
code=0
wait "$run" || code=$?

# 128 + 15: asked before it had begun. 75: srl_jax.train's own, a server was away for too long.
if ((code == 128 + 15 || code == SAVED)) && [ -n "$asked" ]; then exit "$SAVED"; fi
((code != SAVED)) || exit "$AWAY"
((code == 0)) || exit "$code"
# A run that goes on removes the summary of what was finished before.
if [ "${JAX_PROCESS_ID:-${SLURM_PROCID:-0}}" = 0 ] && [ ! -e "$summary" ]; then exit "$SAVED"; fi
