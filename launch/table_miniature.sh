#!/usr/bin/env bash
# Tables 1 to 3 of the paper in miniature, on the built-in problems: all rows, several seeds.
#
#   launch/table_miniature.sh                hours on 2 CPU cores
#   launch/table_miniature.sh --quick        one seed, 400 steps of SRL: about half an hour
#   launch/table_miniature.sh --dry-run      prints the commands that it would start
#   launch/table_miniature.sh --arms=srl,srl_no_filter --close_seeds=5 --steps=500
#
# Prints mean and spread over seeds of greedy, avg@8 and pass@8 on 200 held-out hard problems, paired
# differences with intervals, and the cost of each row's training. The same command continues an
# interrupted table; everything is in --workdir (runs/miniature).
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "$ROOT/requirements.txt"
flags=()
for flag in "$@"; do
  case "$flag" in
    --quick) flags+=(--seeds=1 --close_seeds=1 --steps=400) ;;
    *) flags+=("${flag/#--dry-run/--dry_run}") ;;
  esac
done
exec python -m launch.miniature "${flags[@]}"
