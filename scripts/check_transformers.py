#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that transformers opens a model folder written by gmamba and computes the same with it.

  gmamba embed --model MODEL SEQUENCES.fa --pool none -o states.npy
  scripts/check_transformers.py MODEL SEQUENCES.fa states.npy

Needs torch, transformers and numpy. Fails when a weight is missing or unexpected, when token ids differ
from the character vocabulary, or when hidden states differ by more than 1e-5 (norm of difference over
norm).
"""
import sys

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def read_fasta(path):
    records = []
    for line in open(path):
        if line.startswith(">"):
            records.append("")
        elif records:
            records[-1] += line.strip()
    return records


def main(folder, fasta, states):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                       output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(key):
            sys.exit(f"{key}: {info[key]}")
    assert tokenizer("ACGTNacgtn")["input_ids"] == [7, 8, 9, 10, 11] * 2, tokenizer("ACGTN")
    ours = numpy.load(states)
    theirs = []
    model.eval()
    with torch.no_grad():
        for sequence in read_fasta(fasta):
            ids = torch.tensor([tokenizer(sequence)["input_ids"]])
            assert ids.shape[1] == len(sequence)
            theirs.append(model.backbone(ids).last_hidden_state[0].numpy())
    theirs = numpy.concatenate(theirs)
    assert theirs.shape == ours.shape, (theirs.shape, ours.shape)
    error = numpy.linalg.norm(ours - theirs) / numpy.linalg.norm(theirs)
    import transformers
    print(f"transformers {transformers.__version__}: {len(theirs)} positions, relative difference "
          f"of hidden states {error:.2e}")
    if not error < 1e-5:
        sys.exit("hidden states differ")
    print("1 passed, 0 failed")


if __name__ == "__main__":
    main(*sys.argv[1:4])
