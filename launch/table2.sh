#!/usr/bin/env bash
# Table 2 of the paper: SRL with and without dynamic sampling. Flags: those of launch/table1.sh.
exec "$(dirname "${BASH_SOURCE[0]}")/table1.sh" --table=2 "$@"
