# shellcheck shell=bash
# Sourced by the launch scripts: makes .venv beside the code and activates it; messages and usage.
#
# PYTHON         the interpreter to make it with (default python3; 3.11 or newer)
# SRL_JAX_EXTRA  cuda12 or tpu: JAX's build for other hardware than this machine's, for images
# Requirements are installed again only when their files change.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Modules and configs are found from any current directory.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# XLA programs are compiled once a machine, not once a run.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/xla}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}"

# die WORD...: ends the script as for bad input.
die() {
  echo "error: $*" >&2
  exit 2
}

# usage SCRIPT: prints the comment at the head of SCRIPT and exits.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1" >&2
  exit 2
}

# quoted WORD...: a command line that bash reads back as these words.
quoted() {
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
    line+="${line:+ }$word"
  done
  echo "$line"
}

# run COMMAND...: starts it, or prints it if the script has set $dry.
dry=""
run() {
  if [ -n "$dry" ]; then quoted "$@"; else "$@"; fi
}

# jax_extra: the build of JAX for the hardware that is here, as an extra of the package.
jax_extra() {
  if [ -n "${SRL_JAX_EXTRA:-}" ]; then
    echo "$SRL_JAX_EXTRA"
  elif command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then
    echo cuda12
  elif compgen -G '/dev/accel[0-9]*' > /dev/null || compgen -G '/dev/vfio/[0-9]*' > /dev/null ||
    [ -n "${TPU_NAME:-}" ]; then
    echo tpu
  fi
}

# environment_stamp FILE...: the line in .venv/installed by which these files count as installed.
environment_stamp() {
  local extra
  extra="$(jax_extra)"
  echo "$(cat "$@" | cksum | tr ' ' '-')-${extra:-cpu}"
}

# prepare_environment FILE...: .venv with what the requirement files name.
prepare_environment() {
  local python="${PYTHON:-python3}" extra stamp
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
    die "$python is not Python 3.11 or newer; set PYTHON to one that is"
  fi
  extra="$(jax_extra)"
  stamp="$(environment_stamp "$@")"
  if ! grep -qxF "$stamp" "$ROOT/.venv/installed" 2> /dev/null; then
    echo "setting up $ROOT/.venv (JAX for ${extra:-cpu}) ..."
    [ -x "$ROOT/.venv/bin/python" ] || "$python" -m venv "$ROOT/.venv"
    local files=()
    for file in "$@"; do files+=(-r "$file"); done
    "$ROOT/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      "${files[@]}" ${extra:+"jax[$extra]"}
    echo "$stamp" >> "$ROOT/.venv/installed"
  fi
  # shellcheck disable=SC1091
  source "$ROOT/.venv/bin/activate"
}
