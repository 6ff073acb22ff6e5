#!/usr/bin/env bash
# Table 2 of the paper: SRL with and without dynamic sampling.
#
#   launch/table2.sh                        8 x H100: trains and evaluates the rows, prints the table
#   launch/table2.sh --dry-run              prints the commands that it would start
#   launch/table2.sh --rows=A,B             some rows, by the names of their configs
#   launch/table2.sh --config.mesh=v5p-128 --evaluate.width=512    flags of trainings, evaluations
#   launch/table2.sh :model=DIR,data=FILE,tiny --workdir=DIR --rows=srl_math --samples=2 \
#     --sampled=amc23 --greedy= --evaluate.data=FOLDER --evaluate.limit=2     a laptop's CPU
#
# The same command again goes on where it was interrupted; finished rows in --workdir (runs) are not
# repeated, and Tables 1 to 3 share them. With vLLM start the servers first (launch/vllm_server.sh):
# --config.rollout.engine=vllm --config.rollout.servers=URL --evaluate.engine=vllm
# --evaluate.servers=URL.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "$ROOT/requirements.txt"
exec python -m launch.math_tables --table=2 "${@/#--dry-run/--dry_run}"
