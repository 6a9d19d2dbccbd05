# SPDX-License-Identifier: Apache-2.0
# Sourced by quickstart.sh and test.sh: installs the Debian packages that are missing.
# shellcheck shell=bash

build_packages=(
  g++ cmake ninja-build pkg-config nlohmann-json3-dev libssl-dev zlib1g-dev libhts-dev
  libdeflate-dev libopenblas-dev libhwy-dev libcli11-dev libtomlplusplus-dev
)
test_packages=(libgtest-dev libbenchmark-dev)
fuzz_packages=(clang libclang-rt-14-dev libomp-dev)

say() { printf '\n== %s\n' "$*"; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# need_packages PACKAGE...: installs those that are not there, or says how and stops
need_packages() {
  local missing=() package as_root=()
  command -v dpkg-query >/dev/null || {
    echo "This script installs Debian packages and needs dpkg. Elsewhere, install what" >&2
    echo "scripts/setup.sh lists by other means and run cmake as the README says." >&2
    exit 1
  }
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  local install=(apt-get install -y --no-install-recommends "${missing[@]}")
  if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      echo "Packages are missing, and installing them needs root. Run this, then start again:" >&2
      echo "  sudo apt-get update && sudo ${install[*]}" >&2
      exit 1
    fi
    as_root=(sudo -n)
  fi
  say "Installing ${missing[*]}"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}" -q
}

# whether nvcc is on PATH or in its usual place
cuda_compiler() { command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; }

# configure_and_build PRESET [-DNAME=VALUE...] TARGET...: ccache is used where it is installed
configure_and_build() {
  local preset=$1 options=()
  shift
  while [[ ${1:-} == -D* ]]; do options+=("$1"); shift; done
  if command -v ccache >/dev/null; then options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  cmake --preset "$preset" "${options[@]}"
  if [ $# -gt 0 ]; then cmake --build --preset "$preset" --target "$@"
  else cmake --build --preset "$preset"; fi
}
