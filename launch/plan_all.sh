#!/usr/bin/env bash
# Compiles a config for several topologies, without any of that hardware, and writes their plans
# (srl_jax.plan) into benchmarks/plan.md.
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
wrong=0 page="$(mktemp)"
echo "# Plans of $config" > benchmarks/plan.md
for topology in h100x8 h100x32 v5e-8 v5e-16 v5p-128 v6e-256; do
  code=0 small=()
  [[ "$topology" != v5e-* ]] || small=(--config.batch.tokens_per_device=8192) # 16 GB of memory
  printf '\n## %s\n\n' "$topology" | tee -a benchmarks/plan.md
  python -m srl_jax.plan --config="$config" --topology="$topology" \
    --config.rollout.engine=vllm "${small[@]}" "$@" > "$page" || code=$?
  sed 's/^\(.\)/    \1/' "$page" | tee -a benchmarks/plan.md
  [ "$code" -le 1 ] || exit "$code"
  [ "$code" -eq "$([ "$topology" = v5e-8 ] && echo 1 || echo 0)" ] || wrong=1
done
exit "$wrong"
