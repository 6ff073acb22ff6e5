#!/usr/bin/env bash
# Table 2 of the paper: SRL with and without dynamic sampling. Flags: those of launch/table1.sh.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "$ROOT/requirements.txt"
exec python -m launch.math_tables --table=2 "${@/#--dry-run/--dry_run}"
