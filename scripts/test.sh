#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, and runs the tests; the last line says how it went.
#   scripts/test.sh                 all tests, then a program built against the installed package
#   scripts/test.sh --asan          all tests under the address and undefined-behaviour sanitizers
#   scripts/test.sh --fuzz SECONDS  every libFuzzer target for SECONDS each (clang)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/setup.sh
source scripts/setup.sh

usage() { sed -n '3,6s/^# \{0,1\}//p' "$0"; }

mode=all
fuzz_seconds=0
while [ $# -gt 0 ]; do
  case $1 in
    --asan) mode=asan ;;
    --fuzz)
      mode=fuzz
      fuzz_seconds=${2:-}
      [[ $fuzz_seconds =~ ^[1-9][0-9]*$ ]] || { echo "--fuzz needs a number of seconds" >&2; exit 2; }
      shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done
stage=set-up
# tests run side by side: threads that wait must not spin on cores that others need
export OMP_WAIT_POLICY=passive
trap 'status=$?; [ $status = 0 ] || printf "\nTESTS FAILED in: %s\n" "$stage"' EXIT

run_ctest() {
  stage="tests ($1)"
  say "Tests ($1)"
  ctest --preset "$1"
}

# installs the build to a scratch folder and builds examples/find_package against it alone
test_installed_package() {
  stage="installed package"
  say "A program built against the installed package"
  local root=$PWD/build/installed
  rm -rf "$root"
  cmake --install "build/$1" --prefix "$root/prefix" >/dev/null
  cmake -S examples/find_package -B "$root/example" -G Ninja -DCMAKE_PREFIX_PATH="$root/prefix"
  cmake --build "$root/example"
  "$root/example/sequence_loss" test_data/golden/mamba ACGTACGTTTGACCANNACGTTGCA
}

run_fuzzers() {
  local target name count=0
  for target in tests/fuzz/*_fuzz.cpp; do
    name=$(basename "$target" .cpp)
    stage="fuzzing $name"
    say "$name, $fuzz_seconds s"
    mkdir -p "build/fuzz/corpus/$name"
    # new inputs go to the first folder; the committed seeds are only read
    "build/fuzz/tests/$name" -max_total_time="$fuzz_seconds" -print_final_stats=1 -timeout=20 \
      -rss_limit_mb=2048 -artifact_prefix="build/fuzz/$name-" "build/fuzz/corpus/$name" \
      "test_data/fuzz/${name%_fuzz}" 2>&1 | tail -n 12
    count=$((count + 1))
  done
  printf '\nALL FUZZ TARGETS CLEAN: %d, %d s each\n' "$count" "$fuzz_seconds"
}

case $mode in
  fuzz)
    need_packages "${build_packages[@]}" "${test_packages[@]}" "${fuzz_packages[@]}"
    stage=build
    configure_and_build fuzz
    run_fuzzers
    ;;
  asan)
    need_packages "${build_packages[@]}" "${test_packages[@]}"
    stage=build
    configure_and_build asan
    run_ctest asan
    printf '\nALL TESTS PASSED under the sanitizers\n'
    ;;
  all)
    need_packages "${build_packages[@]}" "${test_packages[@]}"
    preset=cpu
    if cuda_compiler; then preset=cuda; fi
    stage=build
    say "Build ($preset)"
    configure_and_build $preset
    test_installed_package $preset
    run_ctest $preset
    printf '\nALL TESTS PASSED\n'
    ;;
esac
