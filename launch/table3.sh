#!/usr/bin/env bash
# Table 3 of the paper: final-answer reward, one-step similarity, SRL. Flags: those of launch/table1.sh.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "$ROOT/requirements.txt"
exec python -m launch.math_tables --table=3 "${@/#--dry-run/--dry_run}"
