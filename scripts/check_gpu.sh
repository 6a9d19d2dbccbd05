#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that only a machine with an NVIDIA GPU can show, in one go: tests against the oracles
# and the CPU, the self-test, a killed training run that resumes to the same bits, the sanitizer of
# CUDA, and the times of kernels and models beside their floors.
#   scripts/check_gpu.sh [STEP...]     steps: tests doctor train sanitizer bench (default: all)
# Builds the preset `cuda` first, unless BUILD names a folder that holds a build.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  -h | --help) sed -n '3,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(tests doctor train sanitizer bench)
command -v nvidia-smi >/dev/null || { echo "skipped: no NVIDIA driver here" >&2; exit 0; }
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

if [ -z "${BUILD:-}" ]; then
  # shellcheck source=scripts/setup.sh
  source scripts/setup.sh
  need_packages "${build_packages[@]}" "${test_packages[@]}"
  configure_and_build cuda
  BUILD=build/cuda
fi
gmamba=$BUILD/gmamba
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=()

say() { printf '\n== %s\n' "$*"; }
# step NAME COMMAND...: runs it, notes a failure and goes on
step() {
  local name=$1 begin=$SECONDS
  shift
  say "$name"
  if "$@"; then printf '%s: passed in %d s\n' "$name" $((SECONDS - begin))
  else failed+=("$name"); printf '%s: FAILED\n' "$name"; fi
}

tests() {
  "$BUILD/tests/kernels_test" --gtest_filter='*Cuda*' --gtest_brief=1 &&
    "$BUILD/tests/libmamba_test" --gtest_filter='*Cuda*' --gtest_brief=1
}

# a run that is killed again and again ends with the weights of one that is not
train() {
  local options=(--fasta test_data/lambda.fa.gz --d-model 64 --layers 2 --context 2048
    --batch-tokens 16384 --steps 200 --save-every 10 --device cuda -q)
  "$gmamba" pretrain "${options[@]}" --out "$scratch/whole"
  "$gmamba" pretrain "${options[@]}" --out "$scratch/killed" & local run=$!
  local round
  for round in 1 2 3 4; do
    sleep "0.$((RANDOM % 8 + 1))"
    kill -KILL $run 2>/dev/null || true
    wait $run 2>/dev/null || true
    "$gmamba" pretrain "${options[@]}" --out "$scratch/killed" --resume & run=$!
  done
  wait $run || return 1
  cmp "$scratch/whole/model/model.safetensors" "$scratch/killed/model/model.safetensors" &&
    echo "killed $round times; the same weights to the last bit"
}

# small cases of every kernel that shares memory within a block, fp32 and bf16
raced='SelectiveScanCuda.MatchesOracleInFewShortChunks:DeltaProjectionCuda.RepeatsItsBits*'
raced+=':LinearBackwardKernel.WritesOnlyItsOwnElements:ConvProjection.IsTheSame*Cuda*'
raced+=':CudaRows.Convolution*:CudaBasic.RmsNorm*'

# memcheck over the self-test and, with racecheck, which takes many times as long, tests of kernels
sanitizer() {
  command -v compute-sanitizer >/dev/null || { echo "skipped: no compute-sanitizer"; return 0; }
  check memcheck "$gmamba" doctor --device cuda --progress none &&
    check memcheck "$BUILD/tests/kernels_test" --gtest_filter="$raced" &&
    check racecheck "$BUILD/tests/kernels_test" --gtest_filter="$raced"
}
check() {
  local tool=$1
  shift
  compute-sanitizer --tool "$tool" --error-exitcode 9 "$@" >"$scratch/$tool.log" 2>&1 ||
    { tail -n 30 "$scratch/$tool.log"; return 1; }
  printf '%s: ' "$tool"
  grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$scratch/$tool.log" | tail -n 1
}

for name in "${steps[@]}"; do
  case $name in
    tests | train | sanitizer) step "$name" "$name" ;;
    doctor) step doctor "$gmamba" doctor --device cuda ;;
    bench) step bench "$gmamba" bench --device cuda ;;
    *) echo "unknown step $name" >&2; exit 2 ;;
  esac
done
if [ ${#failed[@]} -gt 0 ]; then
  printf '\nGPU CHECKS FAILED: %s\n' "${failed[*]}"
  exit 1
fi
printf '\nALL GPU CHECKS PASSED\n'
