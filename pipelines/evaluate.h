// SPDX-License-Identifier: Apache-2.0
/// How good a model is on given data: the loss of a language model beside Markov models, or the
/// predictions of a classifier beside k-mer regression, so that one sees whether it earns its cost.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipelines/job.h"
#include "pipelines/model_input.h"
#include "pipelines/sequence_input.h"

namespace gmamba {

struct EvaluateOptions {
  InputOptions input;
  std::string model;
  int64_t context = 0;
  bool by_position = false;
  std::string report;
  std::string labels;
  std::string table;
  std::vector<std::string> baseline_train;
  std::string baseline_labels;
  std::vector<int64_t> baseline_orders = {3, 12};
  int64_t baseline_k = 6;
  CommonOptions common;

  template <class V>
  void visit(V& v) {
    input.visit(v, false);
    v.heading("Evaluation");
    v("model", model, "model or run folder", {.value = "DIR", .required = true});
    v("context", context, "the model's memory is cleared every N bases",
      {.value = "N", .shown_default = "never within a record"});
    v("by-position", by_position,
      "loss against the bases of context seen, as a table; with --context N beside the same bases "
      "predicted with at most N");
    v("report", report, "with --by-position: the curve as a page", {.value = "HTML"});
    v("labels", labels, "table with columns id and label for the inputs, for a model with a head",
      {.value = "TSV"});
    v("table", table, "table with columns sequence and label in place of inputs", {.value = "TSV"});
    v.heading("Baselines");
    v("baseline-train", baseline_train,
      "what the baselines learn from: the model's training sequences; for a classifier a table "
      "with columns sequence and label",
      {.value = "FILE"});
    v("baseline-labels", baseline_labels, "labels of FASTA given as --baseline-train",
      {.value = "TSV"});
    v("baseline-orders", baseline_orders, "orders of the Markov models, 0 to 12",
      {.value = "LIST", .comma = true});
    v("baseline-k", baseline_k, "k of the k-mer regression, 1 to 8", {.value = "K"});
    common.visit(v);
  }
  bool classifies() const { return !labels.empty() || !table.empty(); }
  /// Throws kUsage.
  void validate() const;
};

/// A table for people in the job's report; with --out the same as JSON.
void evaluate(const EvaluateOptions& options, Job& job);

namespace detail {
void evaluate_language(const EvaluateOptions& options, Context& ctx, const Model& model, Job& job);
void evaluate_classes(const EvaluateOptions& options, Context& ctx, const Model& model, Job& job);
void evaluate_positions(const EvaluateOptions& options, Context& ctx, const Model& model, Job& job);
/// Puts results into the record, and to --out as JSON or into the report as text.
void finish_evaluation(const EvaluateOptions& options, const Json& results, std::string text,
                       Job& job);
}  // namespace detail

}  // namespace gmamba
