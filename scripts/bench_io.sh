#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Reading and tokenising beside seqtk and samtools, on the same file in the same run.
#   scripts/bench_io.sh [MEGABASES] [ROUNDS]     default: 500 megabases, 5 rounds
# Writes the FASTA to a temporary folder (plain and bgzip) and removes it. Each program runs once a
# round, in turn; printed are the smallest wall and CPU times of each and their ratios.
# Needs seqtk, samtools, bgzip (apt-get install seqtk samtools tabix) and a built gmamba_bench:
# BENCH=path, default build/cpu/tests/gmamba_bench.
set -euo pipefail
cd "$(dirname "$0")/.."

megabases=${1:-500}
rounds=${2:-5}
bench=${BENCH:-build/cpu/tests/gmamba_bench}
[ -x "$bench" ] || { echo "no benchmark at $bench: build gmamba_bench, or set BENCH" >&2; exit 2; }
for tool in seqtk samtools bgzip; do
  command -v $tool >/dev/null || { echo "$tool is not installed" >&2; exit 2; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# 10 megabases of random letters, 60 to a line, under as many names as needed
letters=$(for base in A C G T; do printf "$base%.0s" {1..64}; done)
head -c 10000000 /dev/urandom | LC_ALL=C tr '\000-\377' "$letters" | fold -w 60 >"$folder/lines"
echo >>"$folder/lines"
for ((i = 0; i < megabases / 10; i++)); do
  printf '>record%d\n' "$i"
  cat "$folder/lines"
done >"$folder/plain.fa"
bgzip -c -@ 2 "$folder/plain.fa" >"$folder/packed.fa.gz"
samtools faidx "$folder/plain.fa"
names=$(cut -f1 "$folder/plain.fa.fai")
bytes=$(stat -c %s "$folder/plain.fa")

# measure NAME COMMAND...: appends wall and CPU seconds to the file of that name
measure() {
  local name=$1
  shift
  local TIMEFORMAT='%R %U %S'
  { time "$@" >/dev/null 2>&1; } 2>>"$folder/$name.times"
}
ours() {
  GMAMBA_BENCH_FASTA=$folder/$1 "$bench" "--benchmark_filter=^BM_ReadFasta/threads:$2/"
}

for ((round = 0; round < rounds; round++)); do
  measure seqtk_plain seqtk seq "$folder/plain.fa"
  # shellcheck disable=SC2086 # a list of names
  measure samtools_plain samtools faidx -n 0 "$folder/plain.fa" $names
  measure gmamba_plain ours plain.fa 1
  measure seqtk_bgzip seqtk seq "$folder/packed.fa.gz"
  measure bgzip_1 bgzip -dc "$folder/packed.fa.gz"
  measure gmamba_bgzip_1 ours packed.fa.gz 1
  measure gmamba_bgzip_2 ours packed.fa.gz 2
done

best() { # best NAME: smallest wall, smallest CPU
  awk '{ cpu = $2 + $3 } NR == 1 || $1 < wall { wall = $1 } NR == 1 || cpu < least { least = cpu }
       END { print wall, least }' "$folder/$1.times"
}
printf '%s Mb, %s bytes of text, best of %s rounds\n' "$megabases" "$bytes" "$rounds"
printf '%-18s %9s %9s %9s\n' program 'wall s' 'CPU s' 'GB/s text'
for name in seqtk_plain samtools_plain gmamba_plain seqtk_bgzip bgzip_1 gmamba_bgzip_1 \
  gmamba_bgzip_2; do
  read -r wall cpu < <(best $name)
  awk -v n=$name -v w="$wall" -v c="$cpu" -v b="$bytes" \
    'BEGIN { printf "%-18s %9.3f %9.3f %9.2f\n", n, w, c, b / w / 1e9 }'
done
ratio() { # ratio SLOW FAST WORDS
  read -r slow slow_cpu < <(best "$1")
  read -r fast fast_cpu < <(best "$2")
  awk -v a="$slow" -v b="$fast" -v c="$slow_cpu" -v d="$fast_cpu" -v t="$3" \
    'BEGIN { printf "%-46s %.2f (wall) %.2f (CPU)\n", t, a / b, c / d }'
}
ratio seqtk_plain gmamba_plain 'plain: faster than seqtk seq by'
ratio samtools_plain gmamba_plain 'plain: faster than samtools faidx by'
ratio seqtk_bgzip gmamba_bgzip_1 'bgzip, 1 thread: faster than seqtk seq by'
ratio gmamba_bgzip_1 gmamba_bgzip_2 'bgzip: 2 threads faster than 1 by'
