#!/usr/bin/env bash
# Installs the requirements of the tests and runs all of them, on all cores.
#
#   launch/test.sh                    all tiers
#   launch/test.sh -m 'not slow'      any arguments of pytest: -m unit, -k NAME, -n 0 (one process)
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "$ROOT/requirements.txt" "$ROOT/requirements-test.txt"
# The tests of the sandbox need bubblewrap, those of a run's page Chromium.
for package in bubblewrap chromium; do
  command -v "${package/bubblewrap/bwrap}" > /dev/null && continue
  { [ "$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq "$package"; } > /dev/null 2>&1 ||
    echo "$package cannot be installed: the tests that need it are skipped"
done
cd "$ROOT"
# A worker that dies, as for lack of memory, ends the session; xdist would hang with a new one. Groups
# run in the order of tests/conftest.py, the slowest first.
exec python -m pytest -q -m '' -n auto --dist=loadgroup --no-loadscope-reorder \
  --max-worker-restart=0 "$@"
