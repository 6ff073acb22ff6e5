#!/usr/bin/env bash
# Table 4 of the paper: SWE-bench Verified with oracle files and end to end. It trains nothing.
#
#   launch/table4.sh                          base, SWE-Gym-7B and runs/srl_swe, judged by docker
#   launch/table4.sh --dry-run                prints the commands that it would start
#   launch/table4.sh --rows=base,srl          some rows
#   launch/table4.sh --srl=runs/NAME          our row: a workdir of configs/srl_swe.py, or a model
#   launch/table4.sh --evaluate.engine=vllm --evaluate.servers=URL --judge.workers=8
#   launch/table4.sh --by=sandbox --data=FILE --rows=base --base=DIR --evaluate.limit=2 \
#     --evaluate.dtype=float32                a laptop's CPU; its figures are not Table 4
#
# Also --swe_gym=MODEL, --repositories=DIR (bare clones, made here: 2 to 3 GB) and --output=DIR
# (runs/table4). --evaluate.X and --judge.X are flags of srl_jax.evaluate_swe and of
# srl_jax.evals.swe.judge. The same command again continues where it was interrupted.
# docs/swe.md has what each judge needs.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

declare -A model=(
  [base]=Qwen/Qwen2.5-Coder-7B-Instruct
  [swe_gym_7b]=SWE-Gym/OpenHands-7B-Agent
  [srl]=runs/srl_swe
)
rows=base,swe_gym_7b,srl
repositories=runs/swe_repositories
output=runs/table4
by=docker
data=SWE-bench/SWE-bench_Verified
dry=""
evaluate=()
judge=()
for flag in "$@"; do
  value="${flag#*=}"
  case "$flag" in
    --dry-run | --dry_run) dry=1 ;;
    --rows=*) rows="$value" ;;
    --base=*) model[base]="$value" ;;
    --swe_gym=*) model[swe_gym_7b]="$value" ;;
    --srl=*) model[srl]="$value" ;;
    --repositories=*) repositories="$value" ;;
    --output=*) output="$value" ;;
    --by=*) by="$value" ;;
    --data=*) data="$value" ;;
    --evaluate.*) evaluate+=("--${flag#--evaluate.}") ;;
    --judge.*) judge+=("--${flag#--judge.}") ;;
    *)
      echo "error: $flag is no flag of this script; its head lists them" >&2
      exit 2
      ;;
  esac
done
IFS=, read -ra chosen <<< "$rows"
for row in "${chosen[@]}"; do
  if [ -z "${model[$row]:-}" ]; then
    echo "error: --rows: there is no row $row; there are base, swe_gym_7b and srl" >&2
    exit 2
  fi
done

# run COMMAND...: starts it, or prints it.
run() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

[ -n "$dry" ] || prepare_environment "$ROOT/requirements.txt"
if [ ! -d "$repositories" ]; then
  run "$ROOT/launch/swe_repositories.sh" "$repositories"
fi
evaluations=""
for row in "${chosen[@]}"; do
  run python -m srl_jax.evaluate_swe "--model=${model[$row]}" "--data=$data" \
    "--repositories=$repositories" "--output=$output/$row" "${evaluate[@]}"
  for setting in oracle end_to_end; do
    folder="$output/$row/$setting"
    run python -m srl_jax.evals.swe.judge "--data=$data" "--by=$by" "--output=$folder" \
      "--predictions=$folder/predictions.jsonl" "${judge[@]}"
  done
  evaluations="${evaluations:+$evaluations,}$row=$output/$row"
done
run python -m srl_jax.evals.swe.table "--evaluations=$evaluations" "--output=$output/table4.txt"
