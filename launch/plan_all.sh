#!/usr/bin/env bash
# Compiles a config for every topology of the table, without any of that hardware, and writes the
# table: benchmarks/plan.md, with one JSON file for each topology in runs/plan/.
#
#   launch/plan_all.sh                                   configs/srl_math.py
#   launch/plan_all.sh FILE[:args] [--config.a.b=v ...]  another config, or other values
#
# First use installs the compilers into .venv-plan: libtpu (0.7 GB) and JAX's CUDA plugin (about
# 5 GB). A topology takes one to three CPU minutes. Exit code 1: a topology that should fit does
# not, or v5e-8, which is too small for a 7B model, was not refused. vLLM servers sample on other
# devices, as in the paper.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "$ROOT/requirements.txt"
cd "$ROOT"
config="${1:-configs/srl_math.py}"
shift || true
mkdir -p runs/plan
wrong=0
for topology in h100x8 h100x32 v5e-8 v5e-16 v5p-128 v6e-256; do
  code=0 small=()
  [[ "$topology" != v5e-* ]] || small=(--config.batch.tokens_per_device=8192) # 16 GB of memory
  python -m srl_jax.plan --config="$config" --topology="$topology" --json \
    --config.rollout.engine=vllm "${small[@]}" "$@" > "runs/plan/$topology.json" || code=$?
  [ "$code" -le 1 ] || exit "$code"
  expected=0
  [ "$topology" != v5e-8 ] || expected=1
  if [ "$code" -ne "$expected" ]; then
    echo "$topology: exit code $code, expected $expected; see runs/plan/$topology.json" >&2
    wrong=1
  fi
done
python -m srl_jax.planning.report runs/plan/*.json > benchmarks/plan.md
cat benchmarks/plan.md
exit "$wrong"
