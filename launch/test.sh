#!/usr/bin/env bash
# Sets up what the tests need and runs all of them, the slow ones too.
#
#   launch/test.sh                    everything
#   launch/test.sh -m 'not slow'      any arguments of pytest
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment "$ROOT/requirements.txt" "$ROOT/requirements-test.txt"
cd "$ROOT"
exec python -m pytest -q "$@"
