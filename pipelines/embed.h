// SPDX-License-Identifier: Apache-2.0
/// Sequences to vectors: one for each record, bin or base.
#pragma once

#include <cstdint>
#include <string>

#include "pipelines/job.h"
#include "pipelines/model_input.h"
#include "pipelines/sequence_input.h"

namespace gmamba {

enum class EmbedPool { kMean, kLast, kMax, kNone };
template <>
struct OptionWords<EmbedPool> {
  static constexpr std::pair<std::string_view, EmbedPool> kWords[] = {{"mean", EmbedPool::kMean},
                                                                      {"last", EmbedPool::kLast},
                                                                      {"max", EmbedPool::kMax},
                                                                      {"none", EmbedPool::kNone}};
};

enum class EmbedFormat { kAuto, kNpy, kTsv, kH5 };
template <>
struct OptionWords<EmbedFormat> {
  static constexpr std::pair<std::string_view, EmbedFormat> kWords[] = {
      {"auto", EmbedFormat::kAuto},
      {"npy", EmbedFormat::kNpy},
      {"tsv", EmbedFormat::kTsv},
      {"h5", EmbedFormat::kH5}};
};

enum class EmbedDtype { kF32, kF16 };
template <>
struct OptionWords<EmbedDtype> {
  static constexpr std::pair<std::string_view, EmbedDtype> kWords[] = {{"f32", EmbedDtype::kF32},
                                                                       {"f16", EmbedDtype::kF16}};
};

struct EmbedOptions {
  InputOptions input;
  std::string model;
  EmbedPool pool = EmbedPool::kMean;
  int64_t bin = 0;
  int64_t layer = 0;
  Strands strands = Strands::kForward;
  EmbedDtype dtype = EmbedDtype::kF32;
  EmbedFormat format = EmbedFormat::kAuto;
  CommonOptions common;

  template <class V>
  void visit(V& v) {
    input.visit(v);
    v.heading("Embeddings");
    v("model", model, "model or run folder", {.value = "DIR", .required = true});
    v("pool", pool, "mean, last or max of a record's positions; none: one vector for each base",
      {.value = "WORD"});
    v("bin", bin, "one vector for each N bases, their mean",
      {.value = "N", .shown_default = "off"});
    v("layer", layer, "vectors after K blocks, without a norm",
      {.value = "K", .shown_default = "after the final norm"});
    v("strands", strands, "forward, or both: the mean with those of the reverse complement",
      {.value = "WORD"});
    v("dtype", dtype, "f32 or f16 in the array", {.value = "WORD"});
    v("format", format, "npy (with an index beside it) or tsv; auto: by the name of the output",
      {.value = "WORD"});
    common.visit(v);
  }
  /// Throws kUsage.
  void validate() const;
  /// By --format, else by the name; throws kUnsupported for h5.
  EmbedFormat resolved_format() const;
};

/// Writes the embeddings and fills the job's record.
void embed(const EmbedOptions& options, Job& job);

}  // namespace gmamba
