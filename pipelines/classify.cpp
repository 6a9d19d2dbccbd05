// SPDX-License-Identifier: Apache-2.0
#include "pipelines/classify.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "io/table.h"
#include "libmamba/core/text.h"
#include "pipelines/inference_plan.h"
#include "pipelines/predict.h"
#include "pipelines/sequence_vectors.h"

namespace gmamba {
namespace {

constexpr int kDigits = 6;
constexpr size_t kRowsAtOnce = 1024;

/// Collects pooled vectors, runs the head over many at a time and writes the lines.
class ClassifySink final : public VectorSink {
 public:
  ClassifySink(Context& ctx, const Model& model, const ClassifyOptions& options, TextWriter& table)
      : ctx_(ctx), model_(model), options_(options), table_(table) {
    std::vector<std::string> header = {"id", "length"};
    if (regression()) {
      header.push_back("value");
    } else {
      header.insert(header.end(), {"label", "probability"});
      for (const std::string& label : model.config().labels) header.push_back("p_" + label);
    }
    table_.write(tsv_line(header));
  }

  void add(const RecordInfo&, int64_t, int64_t, std::span<const float> forward,
           std::span<const float> reverse) override {
    forward_.insert(forward_.end(), forward.begin(), forward.end());
    reverse_.insert(reverse_.end(), reverse.begin(), reverse.end());
  }

  void end_record(const RecordInfo& record) override {
    records_.push_back(record);
    if (records_.size() >= kRowsAtOnce) flush();
  }

  void flush() {
    std::vector<float> values = head(forward_);
    if (!reverse_.empty()) {
      const std::vector<float> other = head(reverse_);
      std::transform(values.begin(), values.end(), other.begin(), values.begin(),
                     [](float a, float b) { return 0.5F * (a + b); });
    }
    const size_t width = outputs();
    for (size_t i = 0; i < records_.size(); ++i) {
      write_line(records_[i], std::span(values).subspan(i * width, width));
    }
    records_.clear();
    forward_.clear();
    reverse_.clear();
  }

  int64_t nonfinite() const { return nonfinite_; }
  int64_t empty() const { return empty_; }
  const std::map<std::string, int64_t>& label_counts() const { return label_counts_; }

 private:
  bool regression() const { return model_.config().task == TaskKind::kRegression; }
  size_t outputs() const { return regression() ? size_t{1} : model_.config().labels.size(); }

  /// Probabilities (rows, labels), or values (rows, 1), of pooled vectors.
  std::vector<float> head(const std::vector<float>& pooled) {
    const Arena::Scope scope(ctx_.arena());
    const auto rows = static_cast<int64_t>(records_.size());
    const auto width = static_cast<int64_t>(outputs());
    std::vector<float> values(static_cast<size_t>(rows * width));
    if (rows == 0) return values;
    const TensorView vectors = ctx_.arena().f32({rows, model_.config().d_model});
    const TensorView scores = ctx_.arena().f32({rows, width});
    ctx_.upload(host_view(pooled.data(), {rows, model_.config().d_model}), vectors);
    model_.scores(ctx_, vectors, scores);
    ctx_.download(scores, host_view(values.data(), {rows, width}));
    if (!regression()) softmax_rows(values, width);
    return values;
  }

  void write_line(const RecordInfo& record, std::span<const float> values) {
    std::vector<std::string> fields = {record.id, std::to_string(record.length)};
    const bool finite =
        std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
    if (record.length == 0 || !finite) {
      // nothing was read, or nothing can be said
      (record.length == 0 ? empty_ : nonfinite_) += 1;
      fields.resize(2 + (regression() ? 1 : 2 + values.size()), "NA");
    } else if (regression()) {
      fields.push_back(format_number(values[0], kDigits));
    } else {
      const auto best = std::max_element(values.begin(), values.end());
      const bool known = *best >= options_.min_probability;
      const std::string& label = model_.config().labels[static_cast<size_t>(best - values.begin())];
      fields.push_back(known ? label : "unknown");
      fields.push_back(format_number(*best, kDigits));
      for (const float value : values) fields.push_back(format_number(value, kDigits));
      ++label_counts_[fields[2]];
    }
    table_.write(tsv_line(fields));
  }

  Context& ctx_;
  const Model& model_;
  const ClassifyOptions& options_;
  TextWriter& table_;
  std::vector<RecordInfo> records_;
  std::vector<float> forward_, reverse_;  // (records, D)
  int64_t nonfinite_ = 0;
  int64_t empty_ = 0;
  std::map<std::string, int64_t> label_counts_;
};

void require_head(const Model& model, const std::string& path) {
  require(model.config().task != TaskKind::kNone, ErrorKind::kUsage, "--model ", printable(path),
          ": the model has no task head; make one with 'gmamba finetune --model ", printable(path),
          " --train TABLE --out RUN' and give that run");
}

VectorOptions vector_options(const ClassifyOptions& options, const ModelConfig& config,
                             int64_t segment) {
  VectorOptions vectors;
  vectors.pool = config.pool;
  vectors.both_strands = options.strands == ClassifyStrands::kBoth ||
                         (options.strands == ClassifyStrands::kModel && config.both_strands);
  vectors.segment = segment;
  return vectors;
}

void report(const ClassifySink& sink, Job& job) {
  if (sink.empty() > 0) {
    log_line(job.log, LogLevel::kWarning,
             concat(format_count(sink.empty()), " records have no bases; their label is NA"));
  }
  if (sink.nonfinite() > 0) {
    log_line(job.log, LogLevel::kWarning,
             concat(format_count(sink.nonfinite()),
                    " records have scores that are not finite; their label is NA"));
  }
  Json counts = Json::object();
  for (const auto& [label, count] : sink.label_counts()) counts[label] = count;
  job.record.set_result("labels", counts);
}

}  // namespace

void ClassifyOptions::validate() const {
  input.validate();
  require(min_probability >= 0 && min_probability <= 1, ErrorKind::kUsage,
          "--min-probability: expected a number from 0 to 1, found ", min_probability);
}

void classify(const ClassifyOptions& options, Job& job) {
  const auto ctx = open_context(options.common, job);
  const Model model = open_model(options.model, *ctx, job);
  require_head(model, options.model);
  const InferencePlan plan =
      plan_inference(model.config(), options.common, {{"vectors held", kWaveBytes}});
  if (options.common.plan) {
    job.report = plan_report(*ctx, model, plan);
    return;
  }
  const Tokenizer tokenizer(model.vocabulary());
  TokenSource source(options.input, tokenizer, ctx->threads(), job.log);
  for (const std::string& input : options.input.inputs) job.record.add_input(input);

  TextWriter table(options.common.out);
  ClassifySink sink(*ctx, model, options, table);
  const VectorOptions vectors = vector_options(options, model.config(), plan.segment);
  RecordFeed feed(source, vector_feed_limits(model.config(), vectors));
  SequenceVectors engine(*ctx, model, vectors, sink, &job.progress);
  job.progress.start("classifying", "bases", source.total_bases());
  engine.run(feed, source);
  sink.flush();
  job.progress.finish();
  table.commit();

  report_letters(source, job);
  report(sink, job);
  job.record.add_bases(engine.bases());
  job.record.add_records(feed.records());
  job.record.set_result("segment", vectors.segment);
  job.record.add_output(options.common.out.empty() ? "-" : options.common.out);
  if (!options.common.no_provenance) job.record.write_beside(options.common.out);
}

}  // namespace gmamba
