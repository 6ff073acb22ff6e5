#!/usr/bin/env bash
# Installs the requirements of the tests and runs all of them, on all cores.
#
#   launch/test.sh                    all tiers
#   launch/test.sh -m 'not slow'      any arguments of pytest: -m unit, -k NAME, -n 0 (one process)
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "$ROOT/requirements.txt" "$ROOT/requirements-test.txt"
# The tests of the sandbox need bubblewrap; without it they are skipped.
if ! command -v bwrap > /dev/null && command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
  { apt-get update -qq && apt-get install -y -qq bubblewrap; } > /dev/null 2>&1 ||
    echo "bubblewrap cannot be installed: the tests of the sandbox are skipped"
fi
# The tests of a run's page look at it in Chromium; without it they are skipped.
if ! command -v chromium > /dev/null && command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
  { apt-get update -qq && apt-get install -y -qq chromium; } > /dev/null 2>&1 ||
    echo "chromium cannot be installed: the tests that look at the page are skipped"
fi
cd "$ROOT"
# A worker that dies, as for lack of memory, ends the session; xdist would hang with a new one. Groups
# run in the order of tests/conftest.py, the slowest first.
exec python -m pytest -q -m '' -n auto --dist=loadgroup --no-loadscope-reorder \
  --max-worker-restart=0 "$@"
