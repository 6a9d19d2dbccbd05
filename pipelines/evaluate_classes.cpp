// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <optional>
#include <utility>

#include "libmamba/base_codes.h"
#include "libmamba/baseline_kmer.h"
#include "libmamba/core/text.h"
#include "pipelines/evaluate.h"
#include "pipelines/inference_plan.h"
#include "pipelines/labelled.h"
#include "pipelines/metrics.h"
#include "pipelines/predict.h"
#include "pipelines/stop.h"

namespace gmamba {
namespace {

LabelledText read_text(const std::string& table, const std::vector<std::string>& inputs,
                       const std::string& labels, InvalidLetters invalid, Job& job) {
  if (!table.empty()) {
    job.record.add_input(table);
    return read_labelled_table(table, invalid, job.log);
  }
  for (const std::string& input : inputs) job.record.add_input(input);
  job.record.add_input(labels);
  return read_labelled_records(inputs, labels, job.log, invalid);
}

/// What the baseline learns from: one table, or records with a table of labels.
LabelledText read_baseline_text(const EvaluateOptions& options, Job& job) {
  if (!options.baseline_labels.empty()) {
    return read_text({}, options.baseline_train, options.baseline_labels, options.input.invalid,
                     job);
  }
  LabelledText all;
  for (const std::string& table : options.baseline_train) {
    LabelledText one = read_text(table, {}, {}, options.input.invalid, job);
    std::move(one.sequences.begin(), one.sequences.end(), std::back_inserter(all.sequences));
    std::move(one.labels.begin(), one.labels.end(), std::back_inserter(all.labels));
  }
  return all;
}

/// Predictions in slices, so that progress shows and a stop is heard.
std::vector<float> predict_all(Context& ctx, const Model& model, const Tokenizer& tokenizer,
                               const std::vector<Ids>& sequences, int64_t segment, Job& job) {
  constexpr int64_t kSliceTokens = int64_t{1} << 20;
  int64_t total = 0;
  for (const Ids& ids : sequences) total += static_cast<int64_t>(ids.size());
  job.progress.start("predicting", "bases", total);
  std::vector<float> out;
  size_t begin = 0;
  while (begin < sequences.size()) {
    check_stop();
    int64_t tokens = 0;
    size_t end = begin;
    while (end < sequences.size() && (end == begin || tokens < kSliceTokens)) {
      tokens += static_cast<int64_t>(sequences[end++].size());
    }
    const std::vector<float> part =
        predict(ctx, model, tokenizer, std::span(sequences).subspan(begin, end - begin), segment);
    out.insert(out.end(), part.begin(), part.end());
    job.progress.add(tokens);
    begin = end;
  }
  job.progress.finish();
  job.record.add_bases(total);
  return out;
}

/// Classes predicted by k-mer regression for the same sequences.
std::vector<int32_t> kmer_classes(const EvaluateOptions& options, Context& ctx,
                                  const ModelConfig& config, const Tokenizer& tokenizer,
                                  const std::vector<Ids>& sequences, Job& job) {
  const LabelledText text = read_baseline_text(options, job);
  const std::vector<Example> training =
      make_examples(text, config.labels, config.task, tokenizer, options.baseline_train.front());
  KmerBaseline kmer({.k = static_cast<int>(options.baseline_k)},
                    static_cast<int>(config.labels.size()));
  std::vector<uint8_t> codes;
  const auto encode = [&](const Ids& ids) -> const std::vector<uint8_t>& {
    codes.resize(ids.size());
    tokens_to_bases(tokenizer.vocabulary(), ids, codes);
    return codes;
  };
  for (const Example& example : training) kmer.add_training(encode(example.ids), example.label);
  log_line(job.log, LogLevel::kInfo,
           concat("fitting ", options.baseline_k, "-mer regression to ",
                  format_count(kmer.training_size()), " sequences"));
  kmer.fit(ctx);
  std::vector<int32_t> classes;
  for (const Ids& ids : sequences) {
    check_stop();
    const std::vector<double> p = kmer.predict(encode(ids));
    classes.push_back(static_cast<int32_t>(std::max_element(p.begin(), p.end()) - p.begin()));
  }
  return classes;
}

std::string metrics_line(const std::string& what, const ClassMetrics& metrics) {
  return concat(what, ": accuracy ", format_number(metrics.accuracy, 4), ", MCC ",
                format_number(metrics.mcc, 4), ", macro F1 ", format_number(metrics.macro_f1, 4),
                " on ", format_count(metrics.count), " sequences\n");
}

}  // namespace

void detail::evaluate_classes(const EvaluateOptions& options, Context& ctx, const Model& model,
                              Job& job) {
  const ModelConfig& config = model.config();
  const bool regression = config.task == TaskKind::kRegression;
  require(!regression || options.baseline_train.empty(), ErrorKind::kUsage,
          "--baseline-train: the k-mer baseline tells classes apart, and this is a regression "
          "model");
  const InferencePlan plan = plan_inference(config, options.common);
  if (options.common.plan) {
    job.report = plan_report(ctx, model, plan);
    return;
  }
  const Tokenizer tokenizer(model.vocabulary());
  const LabelledText text =
      read_text(options.table, options.input.inputs, options.labels, options.input.invalid, job);
  std::vector<Example> examples =
      make_examples(text, config.labels, config.task, tokenizer,
                    options.table.empty() ? options.labels : options.table);
  std::vector<Ids> sequences;
  std::vector<int32_t> truth;
  std::vector<float> values;
  for (Example& example : examples) {
    sequences.push_back(std::move(example.ids));
    truth.push_back(example.label);
    values.push_back(example.value);
  }
  const std::vector<float> predicted =
      predict_all(ctx, model, tokenizer, sequences, plan.segment, job);
  job.record.add_records(static_cast<int64_t>(sequences.size()));
  job.record.set_result("segment", plan.segment);

  Json results = Json::object();
  std::string report;
  if (regression) {
    const RegressionMetrics metrics = regression_metrics(values, predicted);
    results["model"] = to_json(metrics);
    report = concat("model: mean squared error ", format_number(metrics.mean_squared_error, 5),
                    ", Pearson ", format_number(metrics.pearson, 4), ", R2 ",
                    format_number(metrics.r_squared, 4), " on ", format_count(metrics.count),
                    " sequences\n");
  } else {
    const auto classes = static_cast<int64_t>(config.labels.size());
    const ClassMetrics metrics = class_metrics(truth, argmax_rows(predicted, classes), classes);
    results["model"] = to_json(metrics, config.labels);
    report = metrics_line("model", metrics);
    std::string below = confusion_text(metrics, config.labels);
    if (!options.baseline_train.empty()) {
      const ClassMetrics kmer = class_metrics(
          truth, kmer_classes(options, ctx, config, tokenizer, sequences, job), classes);
      results["kmer"] = to_json(kmer, config.labels);
      report += metrics_line(concat(options.baseline_k, "-mer regression"), kmer);
    }
    report += below;
  }
  finish_evaluation(options, results, std::move(report), job);
}

}  // namespace gmamba
