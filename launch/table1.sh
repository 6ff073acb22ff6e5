#!/usr/bin/env bash
# Table 1 of the paper: base model, S1K-7B, SFT, RLVR, SFT then RLVR, SRL, SRL then RLVR.
#
#   launch/table1.sh                        8 x H100: trains and evaluates the rows, prints the table
#   launch/table1.sh --dry-run              prints the commands that it would start
#   launch/table1.sh --rows=A,B             some rows, by the names of their configs
#   launch/table1.sh --config.mesh=v5p-128 --evaluate.width=512    flags of trainings, evaluations
#   launch/table1.sh :model=DIR,data=FILE,tiny --workdir=DIR --rows=srl_math --samples=2 \
#     --sampled=amc23 --greedy= --evaluate.data=FOLDER --evaluate.limit=2     a laptop's CPU
#
# The same command continues an interrupted table; finished rows in --workdir (runs) are not
# repeated, and Tables 1 to 3 share them. With vLLM start the servers first (launch/vllm_server.sh):
# --config.rollout.engine=vllm --config.rollout.servers=URL --evaluate.engine=vllm
# --evaluate.servers=URL.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "$ROOT/requirements.txt"
exec python -m launch.math_tables --table=1 "${@/#--dry-run/--dry_run}"
