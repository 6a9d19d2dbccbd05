// SPDX-License-Identifier: Apache-2.0
/// Sequences to labels, or to values for a regression model, by a model's task head.
#pragma once

#include <string>

#include "pipelines/job.h"
#include "pipelines/model_input.h"
#include "pipelines/sequence_input.h"

namespace gmamba {

enum class ClassifyStrands { kModel, kForward, kBoth };
template <>
struct OptionWords<ClassifyStrands> {
  static constexpr std::pair<std::string_view, ClassifyStrands> kWords[] = {
      {"model", ClassifyStrands::kModel},
      {"forward", ClassifyStrands::kForward},
      {"both", ClassifyStrands::kBoth}};
};

struct ClassifyOptions {
  InputOptions input;
  std::string model;
  ClassifyStrands strands = ClassifyStrands::kModel;
  double min_probability = 0;
  CommonOptions common;

  template <class V>
  void visit(V& v) {
    input.visit(v);
    v.heading("Classification");
    v("model", model, "model or run folder with a task head", {.value = "DIR", .required = true});
    v("strands", strands,
      "forward; both: the mean of both strands' probabilities; model: as it was trained",
      {.value = "WORD"});
    v("min-probability", min_probability, "the label is 'unknown' below it", {.value = "P"});
    common.visit(v);
  }
  /// Throws kUsage.
  void validate() const;
};

/// Writes a line for each record, in input order: id, length, label, probability, then the
/// probability of each class; for regression id, length, value.
void classify(const ClassifyOptions& options, Job& job);

}  // namespace gmamba
