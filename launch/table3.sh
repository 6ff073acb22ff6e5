#!/usr/bin/env bash
# Table 3 of the paper: final-answer reward, one-step similarity, SRL. Flags: those of launch/table1.sh.
exec "$(dirname "${BASH_SOURCE[0]}")/table1.sh" --table=3 "$@"
