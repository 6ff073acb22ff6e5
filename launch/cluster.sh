# shellcheck shell=bash disable=SC2034  # the scripts that source this file use the variables
# Sourced by the launch scripts that start more than one process. It removes --dry-run, if that is
# the first of the script's arguments, and sets $dry.
#
# SRL_TRAINER_NODES, SRL_SERVER_NODES  default 1 each (launch/slurm.sh, launch/kubernetes.yaml)
# SRL_CARDS_PER_NODE  default 8; 0: no accelerator, one server on each server node's CPU
# SRL_VLLM_PORT       default 8101, of a node's first server; the others have the ports after it
# SRL_VLLM_FLAGS      more flags of vLLM, for every server

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
shopt -s inherit_errexit # an error inside $(...) ends the script

# Exit codes of a process that saved and is not finished: the same command continues it.
SAVED=75 # it received a signal to stop
AWAY=69  # a server was away for too long; a restart may not help, so RESTARTS times at most
RESTARTS=20

if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi

# number NAME DEFAULT LEAST: the environment variable NAME, a whole number that is LEAST or more.
number() {
  local value="${!1:-$2}"
  if ! [[ "$value" =~ ^(0|[1-9][0-9]{0,4})$ ]] || ((value < $3)); then
    die "$1=$value: has to be a whole number, $3 or more"
  fi
  echo "$value"
}
trainer_count="$(number SRL_TRAINER_NODES 1 1)"
server_count="$(number SRL_SERVER_NODES 1 1)"
cards_per_node="$(number SRL_CARDS_PER_NODE 8 0)"
first_port="$(number SRL_VLLM_PORT 8101 1)"

# await PID: waits until the process has ended; its exit code. A signal ends a wait, not the process.
await() {
  while kill -0 "$1" 2> /dev/null; do wait "$1" || true; done
  wait "$1"
}

# ready PID FILE LINE: waits for a line that begins with LINE in the output FILE of a process, and
# prints the output. Ends the script if the process ends first; it has printed the reason.
ready() {
  until grep -qs "^$3" "$2"; do
    kill -0 "$1" 2> /dev/null || exit 2
    sleep 1
  done
  cat "$2"
}

# flag_of NAME DEFAULT FLAG...: the last --NAME=VALUE's value.
flag_of() {
  local name="$1" value="$2" flag
  shift 2
  for flag in "$@"; do
    [[ "$flag" != "--$name" ]] || die "write --$name=VALUE in one word"
    [[ "$flag" != "--$name="* ]] || value="${flag#*=}"
  done
  echo "$value"
}

# workdir_of CONFIG FLAG...: the folder that srl_jax.train will use, absolute.
workdir_of() {
  local config="${1%%:*}" folder
  shift
  folder="$(flag_of workdir "runs/$(basename "$config" .py)" "$@")"
  [[ "$folder" == /* ]] || folder="$PWD/$folder"
  echo "$folder"
}

# mesh_of NODES CARDS: weights are sharded over a node's CARDS (0: its CPU), replicated over NODES.
mesh_of() {
  echo "data=$1,fsdp=$(($2 ? $2 : 1)),tensor=1"
}

# check_servers_are_ours FLAG...: refuses flags under which the servers of a script are not used.
check_servers_are_ours() {
  local engine servers
  engine="$(flag_of config.rollout.engine vllm "$@")"
  servers="$(flag_of config.rollout.servers "" "$@")"
  [ "$engine" = vllm ] ||
    die "--config.rollout.engine=$engine: this script is for vLLM servers, which it starts;" \
      "leave the flag out, or use launch/run.sh"
  [ -z "$servers" ] ||
    die "--config.rollout.servers=$servers: this script starts its own; leave the flag out"
}

# card_list N: 0,1,...,N-1; "none" for 0.
card_list() {
  if (($1)); then seq -s, 0 $(($1 - 1)); else echo none; fi
}

# server_urls CARDS HOST...: base URLs of the servers on CARDS of every host, commas between.
server_urls() {
  local list host i urls=""
  IFS=, read -ra list <<< "$1"
  shift
  for host in "$@"; do
    for i in "${!list[@]}"; do urls+="${urls:+,}http://$host:$((first_port + i))"; done
  done
  echo "$urls"
}
