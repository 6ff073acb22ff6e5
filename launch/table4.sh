#!/usr/bin/env bash
# Table 4 of the paper: SWE-bench Verified with oracle files and end to end. It trains nothing.
#
#   launch/table4.sh                          base, SWE-Gym-7B and runs/srl_swe, judged by docker
#   launch/table4.sh --dry-run                prints the commands that it would start
#   launch/table4.sh --rows=base=MODEL,srl=runs/NAME      other rows or models, NAME=MODEL
#   launch/table4.sh --evaluate.engine=vllm --evaluate.servers=URL --judge.workers=8
#   launch/table4.sh --rows=base=DIR --data=FILE --judge.by=sandbox --evaluate.limit=2 \
#     --evaluate.dtype=float32                a laptop's CPU; its figures are not Table 4
#
# Also --repositories=DIR (bare clones, made here: 2 to 3 GB) and --output=DIR (runs/table4).
# --evaluate.X and --judge.X are flags of srl_jax.evaluate_swe and srl_jax.evals.swe.judge. The same
# command again continues where it was interrupted. docs/swe.md has what each judge needs.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
rows=base=Qwen/Qwen2.5-Coder-7B-Instruct,swe_gym_7b=SWE-Gym/OpenHands-7B-Agent,srl=runs/srl_swe
repositories=runs/swe_repositories
output=runs/table4
data=() evaluate=() judge=(--by=docker)
for flag in "$@"; do
  value="${flag#*=}"
  case "$flag" in
    --dry-run) dry=1 ;;
    --rows=*) rows="$value" ;;
    --repositories=*) repositories="$value" ;;
    --output=*) output="$value" ;;
    --data=*) data=("$flag") ;;
    --evaluate.*) evaluate+=("--${flag#--evaluate.}") ;;
    --judge.*) judge+=("--${flag#--judge.}") ;;
    *) die "$flag is no flag of this script; its head lists them" ;;
  esac
done
[[ "$rows," =~ ^([a-z0-9_]+=[^,]+,)+$ ]] || die "--rows=$rows: write NAME=MODEL,NAME=MODEL"

[ -n "$dry" ] || prepare_environment "$ROOT/requirements.txt"
[ -d "$repositories" ] || run "$ROOT/launch/swe_repositories.sh" "$repositories"
evaluations=""
IFS=, read -ra chosen <<< "$rows"
for row in "${chosen[@]}"; do
  folder="$output/${row%%=*}"
  run python -m srl_jax.evaluate_swe "--model=${row#*=}" "${data[@]}" \
    "--repositories=$repositories" "--output=$folder" "${evaluate[@]}"
  for setting in oracle end_to_end; do
    run python -m srl_jax.evals.swe.judge "${data[@]}" "--output=$folder/$setting" \
      "--predictions=$folder/$setting/predictions.jsonl" "${judge[@]}"
  done
  evaluations+="${evaluations:+,}${row%%=*}=$folder"
done
run python -m srl_jax.evals.swe.table "--evaluations=$evaluations" "--output=$output/table4.txt"
