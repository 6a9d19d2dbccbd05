// SPDX-License-Identifier: Apache-2.0
#include "pipelines/embed.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <vector>

#include "libmamba/core/text.h"
#include "pipelines/embedding_writer.h"
#include "pipelines/inference_plan.h"
#include "pipelines/sequence_vectors.h"

namespace gmamba {
namespace {

/// Averages strands and hands vectors to the writer.
class EmbedSink final : public VectorSink {
 public:
  explicit EmbedSink(EmbeddingWriter& writer) : writer_(writer) {}

  void add(const RecordInfo& record, int64_t start, int64_t end, std::span<const float> forward,
           std::span<const float> reverse) override {
    std::span<const float> values = forward;
    if (!reverse.empty()) {
      mean_.resize(forward.size());
      std::transform(forward.begin(), forward.end(), reverse.begin(), mean_.begin(),
                     [](float a, float b) { return 0.5F * (a + b); });
      values = mean_;
    }
    if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
      ++nonfinite_;
    }
    writer_.add_row(record.id, record.start + start, record.start + end, values);
  }

  void end_record(const RecordInfo& record) override {
    writer_.end_record(record.id, record.start, record.length);
    if (record.length == 0) ++empty_;
  }

  int64_t nonfinite() const { return nonfinite_; }
  int64_t empty() const { return empty_; }

 private:
  EmbeddingWriter& writer_;
  std::vector<float> mean_;
  int64_t nonfinite_ = 0;
  int64_t empty_ = 0;
};

PoolMode pool_mode(EmbedPool pool) {
  switch (pool) {
    case EmbedPool::kLast:
      return PoolMode::kLast;
    case EmbedPool::kMax:
      return PoolMode::kMax;
    case EmbedPool::kMean:
    case EmbedPool::kNone:
      return PoolMode::kMean;
  }
  return PoolMode::kMean;
}

std::unique_ptr<EmbeddingWriter> open_writer(const EmbedOptions& options, int64_t d_model) {
  if (options.resolved_format() == EmbedFormat::kTsv) {
    return tsv_embeddings(options.common.out, d_model);
  }
  return npy_embeddings(options.common.out, d_model,
                        options.dtype == EmbedDtype::kF16 ? DType::kF16 : DType::kF32, options.bin,
                        options.pool == EmbedPool::kNone);
}

VectorOptions vector_options(const EmbedOptions& options, int64_t segment) {
  VectorOptions vectors;
  vectors.pool = pool_mode(options.pool);
  vectors.bin = options.pool == EmbedPool::kNone ? 1 : options.bin;
  vectors.layer = static_cast<int>(options.layer) - 1;
  vectors.both_strands = options.strands == Strands::kBoth;
  vectors.segment = segment;
  const bool to_stdout = options.common.out.empty() || options.common.out == "-";
  if (!to_stdout) {
    const std::filesystem::path folder = std::filesystem::path(options.common.out).parent_path();
    vectors.scratch_folder = folder.empty() ? "." : folder;
  }
  return vectors;
}

}  // namespace

EmbedFormat EmbedOptions::resolved_format() const {
  const std::filesystem::path name(common.out);
  EmbedFormat found = format;
  if (found == EmbedFormat::kAuto) {
    const std::filesystem::path ending =
        name.extension() == ".gz" ? name.stem().extension() : name.extension();
    if (common.out.empty() || common.out == "-" || ending == ".tsv") {
      found = EmbedFormat::kTsv;
    } else if (ending == ".npy") {
      found = EmbedFormat::kNpy;
    } else if (ending == ".h5") {
      found = EmbedFormat::kH5;
    }
  }
  require(found != EmbedFormat::kAuto, ErrorKind::kUsage, "--out ", printable(common.out),
          ": name it .npy or .tsv, or give --format");
  require(found != EmbedFormat::kH5, ErrorKind::kUnsupported,
          "HDF5 output is not in this build; use npy or tsv");
  return found;
}

void EmbedOptions::validate() const {
  input.validate();
  const EmbedFormat found = resolved_format();
  const bool to_stdout = common.out.empty() || common.out == "-";
  require(found != EmbedFormat::kNpy || !to_stdout, ErrorKind::kUsage,
          "--format npy: an array cannot go to stdout; name a file with --out");
  require(found != EmbedFormat::kNpy || !common.out.ends_with(".gz"), ErrorKind::kUsage, "--out ",
          printable(common.out), ": an array is not compressed; leave out .gz");
  require(dtype == EmbedDtype::kF32 || found == EmbedFormat::kNpy, ErrorKind::kUsage,
          "--dtype f16 is for arrays; a table has f32 values");
  require(bin == 0 || pool == EmbedPool::kMean, ErrorKind::kUsage,
          "--bin takes the mean of each bin; leave out --pool");
}

void embed(const EmbedOptions& options, Job& job) {
  const auto ctx = open_context(options.common, job);
  const Model model = open_model(options.model, *ctx, job);
  require(options.layer <= model.config().n_layers, ErrorKind::kUsage, "--layer ", options.layer,
          ": the model has ", model.config().n_layers, " blocks");
  const InferencePlan plan =
      plan_inference(model.config(), options.common, {{"vectors held", kWaveBytes}});
  if (options.common.plan) {
    job.report = plan_report(*ctx, model, plan);
    return;
  }
  const Tokenizer tokenizer(model.vocabulary());
  TokenSource source(options.input, tokenizer, ctx->threads(), job.log);
  for (const std::string& input : options.input.inputs) job.record.add_input(input);

  const auto writer = open_writer(options, model.config().d_model);
  EmbedSink sink(*writer);
  const VectorOptions vectors = vector_options(options, plan.segment);
  RecordFeed feed(source, vector_feed_limits(model.config(), vectors));
  SequenceVectors engine(*ctx, model, vectors, sink, &job.progress);
  job.progress.start("embedding", "bases", source.total_bases());
  engine.run(feed, source);
  job.progress.finish();
  writer->commit();

  report_letters(source, job);
  if (sink.empty() > 0) {
    log_line(job.log, LogLevel::kWarning,
             concat(format_count(sink.empty()), " records have no bases; their vectors are zero"));
  }
  if (sink.nonfinite() > 0) {
    log_line(job.log, LogLevel::kWarning,
             concat(format_count(sink.nonfinite()), " vectors hold values that are not finite"));
  }
  job.record.add_bases(engine.bases());
  job.record.add_records(feed.records());
  job.record.set_result("rows", writer->rows());
  job.record.set_result("columns", model.config().d_model);
  job.record.set_result("segment", vectors.segment);
  job.record.add_output(options.common.out.empty() ? "-" : options.common.out);
  if (!options.common.no_provenance) job.record.write_beside(options.common.out);
}

}  // namespace gmamba
