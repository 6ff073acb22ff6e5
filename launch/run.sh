#!/usr/bin/env bash
# Trains what a config says; sets up the environment first if it is missing.
#
#   launch/run.sh FILE[:args] [--workdir=DIR] [--config.a.b=value ...]
#   launch/run.sh configs/quickstart.py
#
# The same command again continues a run that was interrupted.
set -euo pipefail
if [ $# -lt 1 ] || [[ "$1" == -* ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "$ROOT/requirements.txt"
config="$1"
shift
exec python -m srl_jax.train --config="$config" "$@"
