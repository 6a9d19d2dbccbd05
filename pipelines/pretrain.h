// SPDX-License-Identifier: Apache-2.0
/// Pretraining of a causal language model on reference genomes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "pipelines/job.h"
#include "pipelines/sequence_input.h"
#include "pipelines/training_run.h"

namespace gmamba {

enum class Arch { kMamba };
template <>
struct OptionWords<Arch> {
  static constexpr std::pair<std::string_view, Arch> kWords[] = {{"mamba", Arch::kMamba}};
};

enum class Objective { kCausal };
template <>
struct OptionWords<Objective> {
  static constexpr std::pair<std::string_view, Objective> kWords[] = {
      {"causal", Objective::kCausal}};
};

struct PretrainOptions {
  std::vector<std::string> fasta;
  InvalidLetters invalid = InvalidLetters::kError;
  std::string regions;
  std::string valid_regions;
  std::vector<std::string> valid_contigs;
  double valid_fraction = 0.05;
  int64_t context = 1024;
  bool carry = false;
  int64_t carry_reset = 50;
  bool context_warmup = false;
  int64_t context_warmup_from = 1024;
  std::optional<double> context_warmup_share;
  bool rc_augment = false;
  double repeat_weight = 1;

  Arch arch = Arch::kMamba;
  Objective objective = Objective::kCausal;
  std::string init;
  int64_t d_model = 128;
  int64_t layers = 4;
  int64_t d_state = 16;
  int64_t d_conv = 4;
  int64_t expand = 2;
  bool untied = false;
  int64_t tokens = 0;

  TrainingOptions training;
  CommonOptions common;

  template <class V>
  void visit(V& v) {
    v.heading("Sequence");
    v("fasta", fasta, "reference genomes, plain or bgzip", {.value = "FILE", .required = true});
    v("invalid", invalid, kInvalidHelp, {.value = "WORD"});
    v("regions", regions, "train and validate within these only: a BED file or chr1:1-1000,...",
      {.value = "BED"});
    v("valid-regions", valid_regions, "hold these out: a BED file or a list of regions",
      {.value = "BED"});
    v("valid-contigs", valid_contigs, "hold these contigs out", {.value = "NAME", .comma = true});
    v("valid-fraction", valid_fraction, "else hold out whole blocks making up this share",
      {.value = "X"});
    v("context", context, "tokens that gradients reach over", {.value = "N"});
    v("carry", carry,
      "rows are streams that go along contigs, the state carried from step to step beyond the "
      "context, without gradient");
    v("carry-reset", carry_reset, "with --carry: after a longer run of N the state begins anew",
      {.value = "N"});
    v("context-warmup", context_warmup,
      "grow the context by doubling, the tokens of a step staying as they are");
    v("context-warmup-from", context_warmup_from, "the first context of the warm-up",
      {.value = "N"});
    v("context-warmup-share", context_warmup_share, "share of the steps with a shorter context",
      {.value = "X", .shown_default = "as many steps for each context"});
    v("rc-augment", rc_augment, "read each window from a random strand");
    v("repeat-weight", repeat_weight, "loss weight of soft-masked (lower-case) bases",
      {.value = "X"});
    v.heading("Model");
    v("arch", arch, "architecture", {.value = "WORD"});
    v("objective", objective, "what is predicted", {.value = "WORD"});
    v("init", init, "start from this model instead of random weights", {.value = "MODEL"});
    v("d-model", d_model, "width of the residual stream", {.value = "N"});
    v("layers", layers, "blocks", {.value = "N"});
    v("d-state", d_state, "states per channel", {.value = "N"});
    v("d-conv", d_conv, "width of the convolution", {.value = "N"});
    v("expand", expand, "inner width over d-model", {.value = "N"});
    v("untied", untied, "an LM head of its own instead of the embedding table");
    v("tokens", tokens, "tokens of the whole run, in place of --steps",
      {.value = "N", .in_place_of = "steps"});
    training.visit(v);
    common.visit(v);
  }
  void validate() const;
};

void pretrain(const PretrainOptions& options, Job& job);

}  // namespace gmamba
