#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone on Debian 12 to a trained species classifier, in one go: installs what is
# missing, builds the command, then pretrains, fine-tunes, classifies, embeds and evaluates on the
# real genomes of test_data/, and prints what came out and how long it took. 2 cores are enough; an
# NVIDIA GPU is used where there is one with a CUDA compiler beside it.
#   scripts/quickstart.sh [FOLDER]     results go to FOLDER (default: runs/quickstart)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/setup.sh
source scripts/setup.sh
case ${1:-} in
  -h | --help) sed -n '3,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
out=${1:-runs/quickstart}

species=(vibrio_cholerae escherichia_coli mycobacterium_tuberculosis plasmodium_falciparum)
model=(--d-model 128 --layers 4)
pretraining=(--context 512 --batch-tokens 8192 --steps 300 --lr 0.008 --rc-augment)
finetuning=(--context 256 --windows-per-class 2000 --batch 32 --lr 0.002 --rc-augment --strands both)

gmamba=build/release/gmamba
stages=()
trap 'status=$?; [ $status = 0 ] || printf "\nQUICK START FAILED in: %s\n" "${stage:-set-up}"' EXIT

# stage NAME COMMAND...: runs it, keeps what it said, and how long it took
stage() {
  stage=$1
  local log=$out/logs/$1.log begin=$SECONDS
  shift
  say "$stage: $*"
  "$@" 2>&1 | tee "$log"
  stages+=("$(printf '%-12s %4d s' "$stage" $((SECONDS - begin)))")
}

# said STAGE PATTERN: the last line with the pattern in what a stage printed
said() { grep -F -- "$2" "$out/logs/$1.log" | tail -n 1 || true; }

# accuracy LABELS TRUTH: "16 of 16 right (100.0 %)"; both are tables of id and label with a header
accuracy() {
  awk -F'\t' '
    FNR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
    NR == FNR { truth[$column["id"]] = $column["label"]; next }
    { total++; right += truth[$column["id"]] == $column["label"] }
    END { printf "%d of %d right (%.1f %%)", right, total, 100 * right / total }' "$2" "$1"
}

# the last row of the table that `evaluate` printed, named by its header
bits_per_base() {
  awk '$1 == "record" { for (i = 1; i <= NF; i++) name[i] = $i }
       $1 == "total" { for (i = 1; i <= NF; i++) value[i] = $i }
       END { for (i = 1; i in name; i++) {
               if (name[i] == "bits/base") text = "model " value[i]
               if (name[i] ~ /^markov/) text = text ", " name[i] " " value[i]
             }
             print text }' "$out/logs/evaluate.log"
}

set_up() {
  need_packages "${build_packages[@]}"
}
build() {
  # for the GPU that is here, or for none
  local gpu=(-DGMAMBA_CUDA=OFF)
  if nvidia-smi -L >/dev/null 2>&1 && cuda_compiler; then
    gpu=(-DGMAMBA_CUDA=AUTO -DCMAKE_CUDA_ARCHITECTURES=native)
  fi
  configure_and_build release "${gpu[@]}" gmamba_command
}

if [ $# -gt 0 ] && [ -n "$(ls -A "$out" 2>/dev/null)" ]; then
  echo "$out is not empty; name a new folder for the results" >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out/logs"
stage set-up set_up
stage build build

fasta=() classes=() baseline=(--baseline-orders "3,11")
for name in "${species[@]}"; do
  fasta+=(--fasta "test_data/$name.fa.gz")
  classes+=(--class "$name=test_data/$name.fa.gz")
  baseline+=(--baseline-train "test_data/$name.fa.gz")
done

stage pretrain "$gmamba" pretrain "${fasta[@]}" "${model[@]}" "${pretraining[@]}" --out "$out/pretrained"
stage finetune "$gmamba" finetune --model "$out/pretrained" "${classes[@]}" "${finetuning[@]}" \
  --out "$out/species"

# whole contigs that it never saw
stage classify "$gmamba" classify --model "$out/species" test_data/unseen.fa.gz -o "$out/contigs.labels.tsv"
stage embed "$gmamba" embed --model "$out/pretrained" test_data/unseen.fa.gz -o "$out/unseen.npy"
stage evaluate "$gmamba" evaluate --model "$out/pretrained" test_data/unseen.fa.gz "${baseline[@]}" -o "$out/evaluate.json"

say "What came out"
cat <<END
Pretraining   $(said pretrain 'held-out bits per base')
Fine-tuning   $(said finetune 'held-out accuracy')
Classified    unseen contigs of 20 to 50 kb: $(accuracy "$out/contigs.labels.tsv" test_data/unseen.tsv)
Embedded      $(($(wc -l < "$out/unseen.npy.index.tsv") - 1)) contigs to vectors: $out/unseen.npy
Evaluated     unseen contigs, bits per base: $(bits_per_base)
Models        $out/pretrained/model, $out/species/model

How long it took, on $(nproc) cores:
$(printf '  %s\n' "${stages[@]}")
  $(printf '%-12s %4d s' total $SECONDS)
END
