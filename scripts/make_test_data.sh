#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Rebuilds the sequences of test_data/ from Debian 12 packages and compares them with
# test_data/MD5SUMS. Needs apt-get, dpkg, bgzip (package tabix), awk and the network, no root.
#   scripts/make_test_data.sh [FOLDER]     default: a temporary folder, compared and then removed
set -euo pipefail
export LC_ALL=C
repo=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=${1:-$work/out}
mkdir -p "$out" "$work/root"

command -v bgzip >/dev/null || { echo "bgzip is missing: apt-get install tabix" >&2; exit 1; }

# package=version, size in bytes and SHA-256 as in Debian's own index
packages="
ragout-examples=2.3-4 cbe6d0dd8b0e36ef2c93c9b9655955f42019dcd9e9b77388ee58ee54d50bd140
kmer-examples=0~20150903+r2013-8 f94b7062d92bc820ced42b83f8be83b9f6772c9c4093689a4135535e8ceb1da7
smalt-examples=0.7.6-12 ffb01b7ff91cd29bd45c980cdeea90d986146dd2e907fd9e365d3a8fa75b0751
bowtie2-examples=2.5.0-3 9f9f580954187e501102b13484bdecdc2725155e0b8020e7a056a48a06642118
python-pyfaidx-examples=0.7.1-2 dee24dac569e8acccc3edc820fc3916036656c035045fd4e7baaf9cb6860179a
"
while read -r package digest; do
  [ -n "$package" ] || continue
  (cd "$work" && apt-get download -q "$package" 2>/dev/null)
  file=$(ls "$work"/"${package%%=*}"_*.deb)
  echo "$digest  $file" | sha256sum --check --quiet
  dpkg -x "$file" "$work/root"
  rm "$file"
done <<<"$packages"

doc=$work/root/usr/share/doc
vibrio() { zcat "$doc/ragout/examples/V.Cholerae/references/O1_biovar.fasta.gz"; }
escherichia() { zcat "$doc/ragout/examples/E.Coli/references/MG1655-K12.fasta.gz"; }
mycobacterium() {
  tar -xzOf "$doc/kmer-examples/test_data.tar.gz" GCF_000195955.2_ASM19595v2_genomic.fna
}
# the source is lower case throughout, which would read as one repeat: upper case it
plasmodium() { zcat "$doc/smalt/test/data/genome_1.fa.gz" | awk '/^>/ {print; next} {print toupper($0)}'; }
lambda() { zcat "$doc/bowtie2/examples/reference/lambda_virus.fa.gz"; }
human() { cat "$doc/python-pyfaidx-examples/examples/chr17.hg19.part.fa"; }

# slice SOURCE PATTERN FIRST LAST NAME DESCRIPTION: bases FIRST..LAST (1-based, inclusive) of the
# record whose header holds PATTERN, 80 to a line
slice() {
  "$1" | awk -v pattern="$2" -v first="$3" -v last="$4" -v header=">$5 $6 $7:$3-$4" '
    /^>/ { on = index($0, pattern) > 0; next }
    on {
      from = at + 1; at += length($0)
      if (at < first || from > last) next
      a = first > from ? first - from + 1 : 1
      b = last < at ? last - from + 1 : length($0)
      text = text substr($0, a, b - a + 1)
    }
    END {
      if (length(text) != last - first + 1) { print "slice outside its record: " header > "/dev/stderr"; exit 1 }
      print header
      for (i = 1; i <= length(text); i += 80) print substr(text, i, 80)
    }'
}
pack() { bgzip -c -l 9 -@ 1 > "$out/$1"; }

vc() { slice vibrio "$1" "$2" "$3" "$4" "Vibrio cholerae O1 El Tor N16961" "$1"; }
ec() { slice escherichia K-12-MG1655 "$1" "$2" "$3" "Escherichia coli K-12 MG1655" "NC_000913.2"; }
mt() { slice mycobacterium NC_000962.3 "$1" "$2" "$3" "Mycobacterium tuberculosis H37Rv" "NC_000962.3"; }
pf() { slice plasmodium ">$1 " "$2" "$3" "$4" "Plasmodium falciparum 3D7" "$1"; }

# training genomes: three records of 350 kb a species
{ vc AE003852.1 200001 550000 vc_1a; vc AE003852.1 1400001 1750000 vc_1b
  vc AE003853.1 100001 450000 vc_2a; } | pack vibrio_cholerae.fa.gz
{ ec 300001 650000 ec_a; ec 1500001 1850000 ec_b; ec 2800001 3150000 ec_c; } |
  pack escherichia_coli.fa.gz
{ mt 300001 650000 mt_a; mt 1500001 1850000 mt_b; mt 2800001 3150000 mt_c; } |
  pack mycobacterium_tuberculosis.fa.gz
{ pf MAL1 100001 450000 pf_1; pf MAL2 200001 550000 pf_2; pf MAL3 300001 650000 pf_3; } |
  pack plasmodium_falciparum.fa.gz

# contigs that no training record overlaps, in an order that tells nothing
{ ec 4000001 4050000 contig01; pf MAL4 500001 550000 contig02
  vc AE003852.1 2500001 2550000 contig03; mt 4000001 4050000 contig04
  vc AE003852.1 2200001 2240000 contig05; mt 900001 940000 contig06
  pf MAL5 700001 740000 contig07; ec 4300001 4340000 contig08
  mt 2300001 2330000 contig09; vc AE003853.1 800001 830000 contig10
  ec 2300001 2330000 contig11; pf MAL6 900001 930000 contig12
  pf MAL7 1000001 1020000 contig13; ec 900001 920000 contig14
  mt 3600001 3620000 contig15; vc AE003853.1 900001 920000 contig16; } > "$work/unseen.fa"
pack unseen.fa.gz < "$work/unseen.fa"
awk 'BEGIN { OFS = "\t"; print "id", "label" }
     /^>/ { print substr($1, 2), tolower($2) "_" $3 }' "$work/unseen.fa" > "$out/unseen.tsv"

# one whole small genome, and a soft-masked piece of a large one
slice lambda NC_001416.1 1 48502 NC_001416.1 "Enterobacteria phage lambda, complete genome" NC_001416.1 |
  pack lambda.fa.gz
slice human chr17 1 40000 chr17_part "Homo sapiens hg19 chr17, soft-masked" chr17_part |
  pack human_softmasked.fa.gz

cd "$out"
if [ -f "$repo/test_data/MD5SUMS" ] && [ "${GMAMBA_NEW_MD5SUMS:-0}" = 0 ]; then
  while read -r digest name; do
    if [[ $name == *.fa ]]; then found=$(zcat "$name.gz" | md5sum | cut -c1-32)
    else found=$(md5sum < "$name" | cut -c1-32); fi
    if [ "$digest" = "$found" ]; then echo "$name: same"
    elif [[ $name == *.gz ]]; then echo "$name: compressed differently (another bgzip)"
    else echo "$name: DIFFERS" >&2; exit 1; fi
  done < "$repo/test_data/MD5SUMS"
else
  for file in *.fa.gz; do echo "$(zcat "$file" | md5sum | cut -c1-32)  ${file%.gz}"; done > MD5SUMS
  md5sum ./*.fa.gz ./*.tsv | sed 's,\./,,' >> MD5SUMS
  echo "wrote $out/MD5SUMS"
fi
