#!/usr/bin/env bash
# Bare clones of the twelve repositories of SWE-bench Verified, for srl_jax.evaluate_swe.
#
#   launch/swe_repositories.sh DIR                    all twelve, 2 to 3 GB
#   launch/swe_repositories.sh DIR django/django ...  some
#
# DIR/owner__name.git has every commit; nothing is checked out. A clone that is there is fetched
# again, and one that was cut off is begun anew. SWE_GIT_HOST replaces the host: a mirror, or a
# folder of clones.
set -euo pipefail
if [ $# -lt 1 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
host="${SWE_GIT_HOST:-https://github.com}"
root="$1"
shift
repositories=("$@")
if [ ${#repositories[@]} -eq 0 ]; then
  repositories=(astropy/astropy django/django matplotlib/matplotlib mwaskom/seaborn pallets/flask
    psf/requests pydata/xarray pylint-dev/pylint pytest-dev/pytest scikit-learn/scikit-learn
    sphinx-doc/sphinx sympy/sympy)
fi
mkdir -p "$root"
for repository in "${repositories[@]}"; do
  clone="$root/${repository/\//__}.git"
  if [ -d "$clone" ]; then
    git -C "$clone" fetch --quiet origin
  else
    rm -rf "$clone.partial"
    git clone --quiet --bare "$host/$repository" "$clone.partial"
    mv "$clone.partial" "$clone"
  fi
  echo "$clone"
done
