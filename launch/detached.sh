#!/usr/bin/env bash
# Runs a command of this checkout that continues when the connection is closed.
#
#   launch/detached.sh COMMAND...    starts it here, one at a time
#   launch/detached.sh --follow      shows its output until it ends; ends with its exit code
#   launch/detached.sh --stop        sends it SIGTERM and waits until it has ended
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p .cache/detached
cd .cache/detached
exec 9>> lock # the command keeps it locked while it runs

case "${1:-}" in
  --follow)
    exec 9>&-
    tail -n +1 -F --pid="$(cat pid)" log
    exit "$(cat code)"
    ;;
  --stop)
    if flock -n 9; then echo "nothing runs" && exit; fi
    kill -TERM -- "-$(cat pid)"
    flock 9
    ;;
  '' | -*)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
  *)
    flock -n 9 || { echo "error: a run is in progress; launch/detached.sh --stop ends it" >&2 && exit 2; }
    rm -f code
    # shellcheck disable=SC2016
    (cd ../.. && exec setsid nohup bash -c 'trap : TERM; "$@"; echo $? > .cache/detached/code' \
      detached "$@") > log 2>&1 < /dev/null &
    echo $! > pid
    ;;
esac
