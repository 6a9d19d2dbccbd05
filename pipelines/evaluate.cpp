// SPDX-License-Identifier: Apache-2.0
#include "pipelines/evaluate.h"

#include <algorithm>

#include "io/table.h"
#include "libmamba/core/text.h"
#include "pipelines/inference_plan.h"

namespace gmamba {

void EvaluateOptions::validate() const {
  input.validate();
  require(labels.empty() || table.empty(), ErrorKind::kUsage,
          "--labels and --table exclude each other");
  require(table.empty() || input.inputs.empty(), ErrorKind::kUsage,
          "--table takes the place of sequence inputs; give one of them");
  require(!table.empty() || !input.inputs.empty(), ErrorKind::kUsage, "missing INPUT (or --table)");
  require(!classifies() || context == 0, ErrorKind::kUsage,
          "--context is for language models; a classifier reads whole records");
  require(!classifies() || input.regions.empty(), ErrorKind::kUsage,
          "--regions is for language models; labels belong to whole records");
  require(!by_position || !classifies(), ErrorKind::kUsage,
          "--by-position is for language models; it excludes --labels and --table");
  require(!by_position || baseline_train.empty(), ErrorKind::kUsage,
          "--by-position and --baseline-train exclude each other");
  require(report.empty() || by_position, ErrorKind::kUsage, "--report goes with --by-position");
  require(report != "-", ErrorKind::kUsage, "--report: name a file");
  require(context >= 0, ErrorKind::kUsage, "--context: expected at least 0, found ", context);
  require(baseline_labels.empty() || (classifies() && !baseline_train.empty()), ErrorKind::kUsage,
          "--baseline-labels goes with --labels or --table and --baseline-train");
  require(!baseline_orders.empty(), ErrorKind::kUsage, "--baseline-orders: give at least one");
  for (const int64_t order : baseline_orders) {
    require(order <= 12, ErrorKind::kUsage, "--baseline-orders: at most 12, found ", order);
  }
  require(baseline_k >= 1 && baseline_k <= 8, ErrorKind::kUsage,
          "--baseline-k: expected 1 to 8, found ", baseline_k);
}

void evaluate(const EvaluateOptions& options, Job& job) {
  const auto ctx = open_context(options.common, job);
  const Model model = open_model(options.model, *ctx, job);
  const bool has_head = model.config().task != TaskKind::kNone;
  require(!options.classifies() || has_head, ErrorKind::kUsage, "--model ",
          printable(options.model),
          ": the model has no task head, so labels cannot be judged; make one with 'gmamba "
          "finetune', or leave out the labels for the loss of the language model");
  require(options.classifies() || !has_head, ErrorKind::kUsage, "--model ",
          printable(options.model),
          ": the model was fine-tuned for a task; give the true answers with --labels or --table");
  if (options.classifies()) {
    detail::evaluate_classes(options, *ctx, model, job);
  } else if (options.by_position) {
    detail::evaluate_positions(options, *ctx, model, job);
  } else {
    detail::evaluate_language(options, *ctx, model, job);
  }
}

void detail::finish_evaluation(const EvaluateOptions& options, const Json& results,
                               std::string text, Job& job) {
  for (const auto& [key, value] : results.items()) job.record.set_result(key, value);
  const std::string& out = options.common.out;
  if (out.empty()) {
    job.report = std::move(text);
    return;
  }
  TextWriter writer(out);
  writer.write(results.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  writer.commit();
  if (out == "-") return;
  job.report = std::move(text);
  job.record.add_output(out);
  if (!options.common.no_provenance) job.record.write_beside(out);
}

}  // namespace gmamba
